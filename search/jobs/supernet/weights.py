"""Saves and loads the finished weights of a supernet run."""

from pathlib import Path
from typing import Any

import torch

from configs import ConfigError
from configs.load import validate
from configs.records import DamagedError
from models import Rack, RackSpec, Supernet
from search.runs.run_folder import WEIGHTS
from search.training import checkpoint
from search.training.ranks import Ranks
from search.training.sharding import gathered


def save_weights(out: Path, model: Supernet, state: dict[str, Any], ranks: Ranks) -> None:
    """Write the weights under the names that they have in the rack; all ranks call this, and the main one writes."""
    tensors = gathered(checkpoint.weights(model.rack))
    if ranks.is_main:
        checkpoint.save(out / WEIGHTS, tensors, state)


def load_supernet(out: Path, device: torch.device | None = None, *, key: str | None = None) -> Supernet | Rack:
    """The model that the finished run in a folder has trained, in evaluation mode; a plain rack, if it has no choices.

    Args:
        out: the run's folder.
        device: where the weights are to lie; the CPU, if not given.
        key: of the configuration that names the folder, for messages.

    Raises:
        ConfigError: if there is no finished run, or one that diverged, or its model is of a format that cannot be read.
    """
    path, place = out / WEIGHTS, str(out) if key is None else f"{key}: {out}"
    if not path.exists():
        raise ConfigError(f"{place}: no finished supernet run is there ({WEIGHTS} is missing)")
    device = device or torch.device("cpu")
    try:
        tensors, state = checkpoint.read(path, device)
    except DamagedError as error:
        raise DamagedError(f"{error}; the command that has trained it makes it anew, given again") from None
    spec = state["spec"]
    rack = validate(RackSpec, {**spec["rack"], "spec_version": spec.get("spec_version", 1)}, str(path))
    if state["results"]["status"] == "diverged":
        text = f"the supernet diverged at step {state['results']['steps']}, so its weights are of no use"
        raise ConfigError(f"{place}: {text}; train it anew with a smaller lr, in another folder")
    model = Supernet(rack, rack=checkpoint.rack_with_weights(rack, tensors))
    return (model if model.slots else model.rack).eval()
