"""Checkpoints: one safetensors file with its JSON state in the header, written whole or not at all."""

import errno
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.records import DamagedError
from configs.storage import whole_file
from models import Rack, RackSpec
from models.assembly.assemble import filled, without_numbers
from search.runs.interruption import was_interrupted
from search.training.sharding import shared_out


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, detached, each shared tensor once."""
    by_identity = {id(tensor): (name, tensor.detach()) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return dict(reversed(list(by_identity.values())))


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy the tensors of `weights` back into a model of the same architecture."""
    own = weights(model)
    _check_same_model(own, tensors)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(shared_out(tensors[name], like=tensor))


def rack_with_weights(spec: RackSpec, tensors: dict[str, Tensor]) -> Rack:
    """The rack of a spec, in training mode, with the tensors of `weights`, their types and device; nothing is drawn for it."""
    rack = without_numbers(spec)
    _check_same_model(weights(rack), tensors)
    # What `read` leaves on the CPU is the file itself: it would change with that, and its tensors start at odd addresses.
    return filled(rack, lambda name: tensors[name].clone() if tensors[name].device.type == "cpu" else tensors[name])


def _check_same_model(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    sizes, given = ({name: tensor.shape for name, tensor in weights.items()} for weights in (own, tensors))
    if sizes != given:
        differing = sorted(name for name in sizes | given if sizes.get(name) != given.get(name))
        raise ValueError(f"these weights are of another model: {differing[:4]} differ")


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON-able state; a reader sees the old file or the new one, also after a kill or a power cut."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    with whole_file(path) as unfinished:
        metadata = {"state": text, "checksum": _checksum(contiguous, text)}
        try:
            save_file(contiguous, unfinished, metadata=metadata)
        except SafetensorError as error:
            raise _of_file(path, error) from None


def _of_file(path: Path, error: Exception) -> OSError:
    """What safetensors raises where the system refuses: its number stands in the text alone, and the file is not named."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def read(path: Path, device: torch.device, *, fingerprint: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the device, and the state. Nothing is unpickled.

    Args:
        path: a file that `save` wrote.
        device: where the tensors go.
        fingerprint: of the run that it has to be of, which its state has under the same name; None takes any.

    Raises:
        DamagedError: if it is missing, not as it was written, or of another run.
        OSError: naming the file, if the system refuses to read it: what is in it may well be whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        text = metadata.get("state", "")
        is_whole = metadata.get("checksum") == _checksum(tensors, text)
        state = json.loads(text)
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing") from None
    except OSError as error:
        raise _of_file(path, error) from None
    except (SafetensorError, ValueError, TypeError) as error:
        if was_interrupted():  # which is what the library makes of it
            raise KeyboardInterrupt from None
        raise DamagedError(f"{path}: damaged: {error}") from None
    if not is_whole:
        reason = "its checksum does not match" if "checksum" in metadata else "it has no checksum"
        raise DamagedError(f"{path}: damaged: {reason}")
    if fingerprint is not None and state.get("fingerprint") != fingerprint:
        raise DamagedError(f"{path}: is of another run ({state.get('fingerprint')}; this one is {fingerprint})")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, state


def header_of(path: Path) -> tuple[str, dict[str, Any]]:
    """The checksum that stands in a file that `save` wrote, and the state; its tensors are not read, nor held against it.

    Raises:
        DamagedError: if it is missing, or no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return metadata["checksum"], json.loads(metadata["state"])
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing") from None
    except OSError as error:
        raise _of_file(path, error) from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedError(f"{path}: damaged: {error}") from None


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """Of names, types, shapes and every bit of the tensors, and of the state's text."""
    checksum = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        # As bytes: NumPy has no bfloat16. A scalar has no last dimension to view, so all are flat.
        checksum = zlib.crc32(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data, checksum)
    return f"crc32:{checksum:08x}"


@dataclass(frozen=True)
class Checkpoint:
    """Where an unfinished run is kept, of which run it is, and who hears that what lies there is of no use."""

    path: Path
    fingerprint: str
    say: Callable[[str], object] = lambda _: None

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Put the newest in the place of the one before."""
        save(self.path, tensors, {**state, "fingerprint": self.fingerprint})

    def read(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What is kept; None if there is nothing, or it is of no use, which is said: the run then starts anew."""
        if not self.path.exists():
            return None
        try:
            return read(self.path, device, fingerprint=self.fingerprint)
        except DamagedError as error:
            self.say(f"{error}; it is left out, and the work starts anew")
            return None

    def is_usable(self) -> bool:
        """Whether a run would go on from here; says nothing."""
        try:
            read(self.path, torch.device("cpu"), fingerprint=self.fingerprint)
        except DamagedError:
            return False
        return True

    def remove(self) -> None:
        """Nothing goes on from here any more."""
        self.path.unlink(missing_ok=True)
