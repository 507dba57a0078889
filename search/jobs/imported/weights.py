"""Loads what the command `import` has left in a folder."""

from pathlib import Path

import torch

from configs import ConfigError
from configs.load import validate_saved
from configs.records import DamagedError
from models import Rack, RackSpec
from search.runs.run_folder import WEIGHTS
from search.training import checkpoint

_MADE_ANEW = "delete the file, and the command that has imported it makes it anew"


def imported_spec(out: Path) -> RackSpec:
    """The description of the imported model in a folder; none of its weights is read. ConfigError as below."""
    path = _weights_of(out)
    try:
        _, state = checkpoint.header_of(path)
    except DamagedError as error:
        raise DamagedError(f"{error}; {_MADE_ANEW}") from None
    return validate_saved(RackSpec, state["rack"], str(path))


def load_imported(out: Path, device: torch.device | None = None) -> Rack:
    """The imported model in a folder, in evaluation mode.

    Raises:
        ConfigError: if there is none, or it is damaged, or of a format that cannot be read.
    """
    path = _weights_of(out)
    try:
        tensors, state = checkpoint.read(path, device or torch.device("cpu"))
    except DamagedError as error:
        raise DamagedError(f"{error}; {_MADE_ANEW}") from None
    return checkpoint.rack_with_weights(validate_saved(RackSpec, state["rack"], str(path)), tensors).eval()


def _weights_of(out: Path) -> Path:
    path = out / WEIGHTS
    if not path.exists():
        raise ConfigError(f"{out}: the import is not finished ({WEIGHTS} is missing); the same command goes on")
    return path
