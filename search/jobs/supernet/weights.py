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


def load_supernet(out: Path, device: torch.device | None = None) -> Supernet | Rack:
    """The model that the finished run in a folder has trained, in evaluation mode; a plain rack, if it has no choices.

    Raises:
        ConfigError: if there is no finished run, or its model is of a format that cannot be read.
    """
    path = out / WEIGHTS
    if not path.exists():
        raise ConfigError(f"{out}: no finished supernet run is there ({WEIGHTS} is missing)")
    device = device or torch.device("cpu")
    try:
        tensors, state = checkpoint.read(path, device)
    except DamagedError as error:
        raise DamagedError(f"{error}; the command that has trained it makes it anew, given again") from None
    spec = state["spec"]
    rack = validate(RackSpec, {**spec["rack"], "spec_version": spec.get("spec_version", 1)}, str(path))
    model = Supernet(rack).to(device)
    checkpoint.load_weights(model.rack, tensors)
    return (model if model.slots else model.rack).eval()
