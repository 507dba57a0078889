"""Checkpoints: one safetensors file with its JSON state in the header, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.storage import whole_file
from search.training.sharding import shared_out


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, detached, each shared tensor once."""
    by_identity = {id(tensor): (name, tensor.detach()) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return dict(reversed(list(by_identity.values())))


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy the tensors of `weights` back into a model of the same architecture."""
    own = weights(model)
    sizes, given = ({name: tensor.shape for name, tensor in weights.items()} for weights in (own, tensors))
    if sizes != given:
        differing = sorted(name for name in sizes | given if sizes.get(name) != given.get(name))
        raise ValueError(f"these weights are of another model: {differing[:4]} differ")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(shared_out(tensors[name], like=tensor))


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON-able state; a reader sees the old file or the new one, also after a kill or a power cut."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as unfinished:
        save_file(contiguous, unfinished, metadata={"state": json.dumps(state)})


def read(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the device, and the state; ValueError if the file is damaged. Nothing is unpickled."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            state = json.loads((file.metadata() or {}).get("state", ""))
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start this trial again") from None
