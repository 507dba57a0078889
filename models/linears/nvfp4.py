"""NVFP4: four-bit floats (E2M1) in blocks of 16 along the input, scales of blocks in E4M3, one float32 scale over all.

Without the scale over all, those of small weights would be among the few smallest numbers of E4M3: at a standard deviation of
0.02 the error would be 0.13 of the weight and not 0.095.
"""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from models.linears.float8 import LARGEST, SMALLEST, from_e4m3, scale_to, to_e4m3

NVFP4_BLOCK = 16
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = (*MAGNITUDES, *(-each for each in MAGNITUDES))
# A byte holds two numbers, as in torch.float4_e2m1fn_x2 the first one in its low half.
_PAIRS = torch.tensor([(low, high) for high, low in product(_VALUES, _VALUES)], device="cpu")
# What is halfway between two magnitudes goes to the one with an even code: every other bound is the float32 just below halfway.
_BOUNDS = torch.tensor([0.25, 0.75 - 2**-24, 1.25, 1.75 - 2**-23, 2.5, 3.5 - 2**-22, 5.0], device="cpu")


def pack(weight: Tensor) -> tuple[Tensor, ...]:
    """[d_out, d_in] -> two codes a byte [d_out, d_in / 2], E4M3 scales [d_out, d_in / 16] (both rounded up), scale []."""
    blocks = F.pad(weight, (0, -weight.shape[1] % NVFP4_BLOCK)).unflatten(1, (-1, NVFP4_BLOCK))
    peaks = blocks.abs().amax(dim=-1)
    scale = scale_to(MAGNITUDES[-1] * LARGEST, peaks.amax())
    scales = to_e4m3((peaks / MAGNITUDES[-1] / scale).clamp(min=SMALLEST))
    scaled = (blocks / (from_e4m3(scales) * scale)[..., None]).flatten(1)
    codes = torch.bucketize(scaled.abs(), _BOUNDS.to(weight.device), out_int32=True) + 8 * (scaled < 0)
    return (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8), scales, scale


def unpack(packed: Tensor, scales: Tensor, scale: Tensor, *, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight again."""
    values = F.embedding(packed.int(), _PAIRS.to(packed.device)).flatten(1).unflatten(1, (-1, NVFP4_BLOCK))
    return (values * (from_e4m3(scales) * scale)[..., None]).flatten(1)[:, : shape[1]].to(dtype)
