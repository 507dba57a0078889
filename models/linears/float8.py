"""Eight-bit floats: E4M3, one scale for a whole weight."""

import torch
from torch import Tensor

LARGEST = 448.0
SMALLEST = 2.0**-9


def to_e4m3(x: Tensor) -> Tensor:
    """The nearest E4M3 numbers, as bytes: what broadcasts, compares and hashes tensors does not know float8 everywhere."""
    return x.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)


def from_e4m3(codes: Tensor) -> Tensor:
    """Bytes -> float32."""
    return codes.view(torch.float8_e4m3fn).float()


def scale_to(largest: float, peak: Tensor) -> Tensor:
    """What `peak` is divided by to become `largest`; 1 where there is nothing but zeros."""
    scale = peak / largest
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def pack(weight: Tensor) -> tuple[Tensor, ...]:
    """[d_out, d_in] -> codes of the same shape, scale []."""
    scale = scale_to(LARGEST, weight.abs().amax())
    return to_e4m3(weight / scale), scale


def unpack(codes: Tensor, scale: Tensor, *, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight again."""
    del shape
    return (from_e4m3(codes) * scale).to(dtype)
