"""initialise_from: starts a supernet from the weights of another run, and reports each mixer's start."""

from collections import Counter
from pathlib import Path
from typing import Any

from configs import ConfigError
from models import Supernet
from models.supernet.from_attention import initialise_supernet
from search.jobs.supernet.evaluation import SupernetEvaluation
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.report import Say


def start_from_trained(spec: SupernetSpec, model: Supernet, evaluation: SupernetEvaluation, say: Say) -> dict[str, Any]:
    """Give the model the weights of `initialise_from`, mixers converted from the main one where that can be.

    Returns:
        What a report says of it: `starts`, slot by slot where each choice has its weights from, and `initial_losses`, the loss of
        each task with one mixer in every slot that offers it.

    Raises:
        ConfigError: if there is no finished run, or one that diverged, or its model is not the main placement of this one.
    """
    folder = Path(str(spec.initialise_from))
    source = load_supernet(folder, key="initialise_from")
    try:
        origins = initialise_supernet(
            model, (source.extract(source.main) if isinstance(source, Supernet) else source).state_dict()
        )
    except ConfigError as error:
        raise ConfigError(f"initialise_from: {folder}: {error}") from None
    for (name, text), n_slots in Counter((origin.name, origin.text) for origin in origins).items():
        say(f"{name} starts, in {n_slots} slot(s): {text}")
    losses = evaluation.losses_by_mixer(model, spec)
    for name, found in losses.items():
        say(f"initial loss of all:{name}: {', '.join(f'{task} {loss:.4f}' for task, loss in found.items())}")
    starts = [{"slot": str(slot), **{each.name: each.text for each in origins if each.slot == slot}} for slot in model.slots]
    return {"starts": starts, "initial_losses": losses}
