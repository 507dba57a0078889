"""Tensors through Ray's object store: written once, read by every process of a node without a copy."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Name = TypeVar("Name")
Array = tuple[np.ndarray, str]
"""The numbers of a tensor, and the name of its dtype."""


def to_arrays(tensors: Mapping[Name, Tensor]) -> dict[Name, Array]:
    """Tensors as arrays, which Ray's object store shares between processes; numpy has no bfloat16, so that goes as integers.

    Names of one tensor, as with tied embeddings, stay names of one array.
    """
    seen: dict[Any, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        plain = here.view(torch.int16) if here.dtype is torch.bfloat16 else here
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        arrays[name] = (seen.setdefault(key, plain.numpy()), str(here.dtype).removeprefix("torch."))
    return arrays


def to_tensors(arrays: Mapping[Name, Array]) -> dict[Name, Tensor]:
    """Tensors over the arrays, which are not copied and must not be written to."""
    with warnings.catch_warnings():
        # Arrays from the object store are read-only and tensors cannot be; evaluation only reads.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return {name: torch.from_numpy(array).view(getattr(torch, dtype)) for name, (array, dtype) in arrays.items()}
