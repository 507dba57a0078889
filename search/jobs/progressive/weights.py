"""Saves and loads the racks of a growth, one a stage; each is a model of its own (early exit)."""

import itertools
import json
from pathlib import Path

import torch

from configs import ConfigError
from configs.load import validate_saved
from configs.records import DamagedError, to_json
from models import Rack, RackSpec, StackSpec
from search.jobs.progressive.plan import Stage
from search.jobs.progressive.report import RESULT
from search.jobs.progressive.stage import Ended
from search.runs.run_folder import WEIGHTS
from search.training import checkpoint


def stage_folder(out: Path, index: int) -> Path:
    """Where a stage works and leaves its rack."""
    return out / "stages" / f"{index + 1:02d}"


def finished_folders(out: Path) -> list[Path]:
    """Of stages that are done, in order, up to the first that is not."""
    folders = (stage_folder(out, index) for index in itertools.count())
    return list(itertools.takewhile(lambda folder: (folder / RESULT).exists(), folders))


def save_stage(folder: Path, stage: Stage, ended: Ended) -> None:
    """Write the rack of a stage that is done, with its spec and those of its stacks when they were new, and its history."""
    state = {
        "fingerprint": ended.row["fingerprint"],
        "history": json.loads(to_json(ended.history)),
        "rack": stage.rack.saved(),
        "initial": {str(uid): stack.to_dict() for uid, stack in stage.initial.items()},
        **{name: getattr(stage, name) for name in ("index", "kind", "uid", "n_steps")},
    }
    checkpoint.save(folder / WEIGHTS, checkpoint.weights(ended.start.rack), state)


def load_stage(folder: Path, device: torch.device) -> tuple[Stage, Rack]:
    """A stage that is done, and its rack; its `before` is not known any more.

    Raises:
        ConfigError: if there is none, or its rack is damaged, or of a format that cannot be read.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise ConfigError(f"{folder}: no finished stage is there ({WEIGHTS} is missing)")
    try:
        tensors, state = checkpoint.read(path, device)
    except DamagedError as error:
        raise DamagedError(f"{error}; the command that has grown it makes it anew, given again") from None
    rack_spec = validate_saved(RackSpec, state["rack"], str(path))
    initial = {int(uid): StackSpec.model_validate(stack) for uid, stack in state["initial"].items()}
    rack = checkpoint.rack_with_weights(rack_spec, tensors)
    return Stage(state["index"], state["kind"], rack_spec, None, initial, state["uid"], state["n_steps"]), rack


def load_rack(out: Path, *, n_stages: int | None = None, device: torch.device | None = None) -> Rack:
    """The rack of a run, in evaluation mode: the last one that is finished, or the one after so many stages."""
    folders = finished_folders(out)
    if not folders:
        raise ConfigError(f"{out}: no finished stage is there")
    if n_stages is not None and not 1 <= n_stages <= len(folders):
        raise ConfigError(f"{out}: there are {len(folders)} finished stages; got n_stages = {n_stages}")
    _, rack = load_stage(folders[(n_stages or len(folders)) - 1], device or torch.device("cpu"))
    return rack.eval()
