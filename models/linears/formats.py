"""The formats of stored weights by name: how a weight is packed, and how it comes back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

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
        stored = tuple(map(torch.empty_like, _packed_meta(weight.shape, name)))
    elif bool(weight.isfinite().all()):
        stored = format_of(name).pack(weight)
    else:
        raise ValueError(f"format = {name!r} stores finite weights; these are not")
    return dict(zip(format_of(name).names, stored, strict=True))


@lru_cache(maxsize=1024)
def _packed_meta(shape: torch.Size, name: str) -> tuple[Tensor, ...]:
    """The same without memory, kept: a trunk has many linears of one shape, and the meta device is slow at packing them."""
    return format_of(name).pack(torch.empty(shape, device="meta"))
