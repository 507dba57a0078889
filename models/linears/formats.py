"""The formats of stored weights by name: how a weight is packed, and how it comes back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from models.linears import float8, nf4, nvfp4


@dataclass(frozen=True)
class Format:
    """What is stored for a weight.

    `pack` takes it in float32, [d_out, d_in], and gives the tensors of these names; `unpack` takes them, and by name the `shape`
    of the weight and the `dtype` that it shall have. What they do depends on nothing but shapes: both run on the meta device.
    """

    names: tuple[str, ...]
    pack: Callable[[Tensor], tuple[Tensor, ...]]
    unpack: Callable[..., Tensor]


def _rounded(weight: Tensor, *, stored: torch.dtype) -> tuple[Tensor, ...]:
    return (weight.to(stored),)


def _widened(rounded: Tensor, *, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    del shape
    return rounded.to(dtype)


FORMATS = {
    "nf4": Format(("packed", "peaks", "scales", "mean"), nf4.pack, nf4.unpack),
    "nvfp4": Format(("packed", "scales", "scale"), nvfp4.pack, nvfp4.unpack),
    "fp8": Format(("codes", "scale"), float8.pack, float8.unpack),
    "bfloat16": Format(("rounded",), partial(_rounded, stored=torch.bfloat16), _widened),
    "half": Format(("rounded",), partial(_rounded, stored=torch.float16), _widened),
}


def format_of(name: str) -> Format:
    """The format of that name; a ValueError with the known ones if there is none."""
    if name not in FORMATS:
        raise ValueError(f"format = {name!r} is not known: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def packed(weight: Tensor, name: str) -> dict[str, Tensor]:
    """What is stored for a weight, by name."""
    weight = weight.detach().float()
    if weight.is_meta:
        return {part: torch.empty(shape, dtype=dtype, device="meta") for part, shape, dtype in _shapes(weight.shape, name)}
    if not bool(weight.isfinite().all()):
        raise ValueError(f"format = {name!r} stores finite weights; these are not")
    return dict(zip(format_of(name).names, format_of(name).pack(weight), strict=True))


@cache  # on the meta device torch takes milliseconds for it
def _shapes(shape: tuple[int, ...], name: str) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    """What is stored for a weight of that shape: names, shapes and types."""
    parts = format_of(name).pack(torch.empty(shape, device="meta"))
    return tuple((part, tensor.shape, tensor.dtype) for part, tensor in zip(format_of(name).names, parts, strict=True))
