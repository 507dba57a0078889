"""The weights of a GGUF file, dequantised by the package `gguf`, which knows their formats."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from configs.gguf_header import StoredTensor

NUMBERS_AT_ONCE = 2**20
"""How many numbers are dequantised at once."""


def check_sizes(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """ConfigError for tensors of which the file has not all, or whose format is not known."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.start + _n_bytes(path, name, tensor) > size:
            raise ConfigError(f"{path}: {name}: cut off, the file ends at byte {size:,}")


def read_dequantised(path: Path, name: str, tensor: StoredTensor) -> Tensor:
    """A tensor in float32, some rows at a time: what comes between takes several times their memory."""
    gguf = _package(path)
    n_rows, width = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    row_bytes, at_once = _n_bytes(path, name, tensor) // n_rows, max(1, NUMBERS_AT_ONCE // width)
    values = torch.empty(n_rows, width)
    try:
        with path.open("rb") as file:
            file.seek(tensor.start)
            for first in range(0, n_rows, at_once):
                rows = values[first : first + at_once]
                stored = np.frombuffer(file.read(len(rows) * row_bytes), np.uint8).reshape(len(rows), row_bytes)
                given = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType(tensor.kind))
                rows.copy_(torch.from_numpy(np.array(given, dtype=np.float32)))
    except (OSError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{path}: {name}: cannot be dequantised: {error}") from None
    return values.reshape(tensor.shape)


def _n_bytes(path: Path, name: str, tensor: StoredTensor) -> int:
    """What a tensor takes in the file."""
    gguf = _package(path)
    try:
        block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
    except (ValueError, KeyError):
        raise ConfigError(f"{path}: {name}: type {tensor.kind} is not known to the package gguf") from None
    if 0 in tensor.shape or not tensor.shape or tensor.shape[-1] % block:
        raise ConfigError(f"{path}: {name}: {list(tensor.shape)} is not in blocks of {block}")
    return math.prod(tensor.shape) // block * n_bytes


def _package(path: Path) -> Any:
    """The package that knows the formats; ConfigError if it is not installed."""
    try:
        import gguf.quants  # noqa: PLC0415 - an optional package
    except ImportError:
        raise ConfigError(f"{path}: GGUF files are read by the package gguf, which is not installed: pip install gguf") from None
    return gguf
