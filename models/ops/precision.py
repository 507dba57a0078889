"""Recurrences are computed in float32, whatever the precision around them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call `function` outside autocast and with its half-precision tensors as float32; float64 stays what it is."""

    @wraps(function)
    def exact(*tensors: Any, **options: Any) -> Any:
        device = next(value.device for value in tensors if isinstance(value, Tensor))
        with without_autocast(device):
            return function(*(_widen(value) for value in tensors), **options)

    return exact


def rounds_to_tf32() -> bool:
    """Whether torch rounds float32 products on CUDA to TF32; its older getter raises where the newer switches were used too."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products in the precision of what is multiplied; torch's meta device has no autocast to be left."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _widen(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value
