"""initialise_from: starts a supernet from the weights of another run, and reports each mixer's start."""

from collections import Counter
from pathlib import Path
from typing import Any

from configs import ConfigError
from models import Rack, RackSpec, Supernet
from models.assembly.assemble import without_memory
from models.linears.adapters import is_adapter
from models.supernet.from_attention import initialise_supernet
from search.jobs.supernet.evaluation import SupernetEvaluation
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.report import Say
from search.runs.run_folder import folder_named


def start_from_trained(
    spec: SupernetSpec, model: Supernet, evaluation: SupernetEvaluation, out: Path, say: Say
) -> dict[str, Any]:
    """Give the model the weights of `initialise_from`, which may lie beside `out`, the run's folder.

    A rack of the `initial_placement`, and a space that is the same, get all of them; else those of the main placement, and mixers
    are converted from the main one where that can be.

    Returns:
        What a report says of it: `starts`, slot by slot where each choice has its weights from, and `initial_losses`, the loss of
        each task with one mixer in every slot that offers it.

    Raises:
        ConfigError: if there is no finished run, or one that diverged, or its model is not the main placement of this one.
    """
    folder = folder_named(str(spec.initialise_from), out)
    source = load_supernet(folder, key="initialise_from")
    try:
        if spec.initial_placement is not None:
            _take_placement(model, source, spec.initial_placement)
            return {}
        if isinstance(source, Supernet) and source.space.fingerprint() == spec.rack.fingerprint():
            model.rack.load_state_dict(source.rack.state_dict())
            return {"initial_losses": _told(evaluation.losses_by_mixer(model, spec), say)}
        origins = initialise_supernet(
            model, (source.extract(source.main) if isinstance(source, Supernet) else source).state_dict()
        )
    except ConfigError as error:
        raise ConfigError(f"initialise_from: {folder}: {error}") from None
    for (name, text), n_slots in Counter((origin.name, origin.text) for origin in origins).items():
        say(f"{name} starts, in {n_slots} slot(s): {text}")
    losses = _told(evaluation.losses_by_mixer(model, spec), say)
    starts = [{"slot": str(slot), **{each.name: each.text for each in origins if each.slot == slot}} for slot in model.slots]
    return {"starts": starts, "initial_losses": losses}


def _told(losses: dict[str, dict[str, float]], say: Say) -> dict[str, dict[str, float]]:
    for name, found in losses.items():
        say(f"initial loss of all:{name}: {', '.join(f'{task} {loss:.4f}' for task, loss in found.items())}")
    return losses


def _take_placement(model: Supernet, source: Supernet | Rack, placement: str) -> None:
    """Give a rack the weights that one placement of a space has; adapters that the placement lacks stay as they start."""
    if not isinstance(source, Supernet):
        raise ConfigError("it has no choices: leave initial_placement out")
    placed = source.space.place(placement)
    if difference := _first_difference(placed, model.space):
        raise ConfigError(f"its placement {placement} is another rack: {difference}")
    model.rack.load_state_dict(source.extract(placement).state_dict(), strict=False)


def _first_difference(theirs: RackSpec, ours: RackSpec) -> str | None:
    """Of a rack and one that starts from it, which may have adapters besides."""
    there, here = (
        {name: list(each.shape) for name, each in without_memory(rack).state_dict().items()} for rack in (theirs, ours)
    )
    here = {name: shape for name, shape in here.items() if name in there or not is_adapter(name)}
    different = (name for name in sorted(there | here) if there.get(name) != here.get(name))
    return next((f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here" for name in different), None)
