"""NF4: the quantiles of a normal distribution in four bits, in blocks of 64 (Dettmers et al. 2023, arXiv 2305.14314).

The largest magnitude of every block is quantised once more, its difference from the mean of all of them, in E4M3 with a float32
scale for each 256: together 4.13 bits a weight and not 4.5. bitsandbytes does the first step where it is installed, by functions:
its layers repack their weights in evaluation on some CPUs, and have no gradient from then on.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise, product
from logging import getLogger
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.linears.float8 import LARGEST, from_e4m3, scale_to, to_e4m3

NF4_BLOCK = 64
GROUP = 256
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# A byte holds two numbers, the first one in its high half.
_PAIRS = torch.tensor(list(product(VALUES, VALUES)), device="cpu")
_BOUNDS = torch.tensor([(low + high) / 2 for low, high in pairwise(VALUES)], device="cpu")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pack(weight: Tensor) -> tuple[Tensor, ...]:
    """[d_out, d_in] of n weights -> two codes a byte [n / 2], E4M3 peaks [n / 64], their scales [n / 16384], their mean []."""
    library = _library(weight)
    packed, peaks = _codes(weight.flatten()) if library is None else _foreign_codes(library, weight)
    mean = peaks.mean()
    groups = F.pad(peaks - mean, (0, -len(peaks) % GROUP)).unflatten(0, (-1, GROUP))
    scales = scale_to(LARGEST, groups.abs().amax(dim=1))
    return packed, to_e4m3(groups / scales[:, None]).flatten()[: len(peaks)].clone(), scales, mean


def unpack(packed: Tensor, peaks: Tensor, scales: Tensor, mean: Tensor, *, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight again."""
    n_weights = shape[0] * shape[1]
    largest = (from_e4m3(peaks) * scales.repeat_interleave(GROUP)[: len(peaks)] + mean).clamp(min=0)
    library = _library(packed)
    # Of an odd number of weights bitsandbytes compiles something first.
    if library is not None and dtype in _DTYPES and n_weights % 2 == 0:
        state = library.QuantState(largest, shape=torch.Size([n_weights]), blocksize=NF4_BLOCK, quant_type="nf4", dtype=dtype)
        weight: Tensor = library.dequantize_4bit(packed[:, None], state)
        return weight.view(shape)
    values = F.embedding(packed.int(), _PAIRS.to(packed.device)).flatten()
    blocks = F.pad(values, (0, NF4_BLOCK * len(peaks) - len(values))).unflatten(0, (-1, NF4_BLOCK)) * largest[:, None]
    return blocks.flatten()[:n_weights].view(shape).to(dtype)


def _codes(weights: Tensor) -> tuple[Tensor, Tensor]:
    """[n] -> packed codes [n / 2], the largest magnitude of every block [n / 64]."""
    blocks = F.pad(weights, (0, -len(weights) % NF4_BLOCK)).unflatten(0, (-1, NF4_BLOCK))
    peaks = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / scale_to(1.0, peaks))[:, None]).flatten()[: len(weights) + len(weights) % 2]
    codes = torch.bucketize(scaled, _BOUNDS.to(weights.device), out_int32=True)
    return (16 * codes[::2] + codes[1::2]).to(torch.uint8), peaks


def _foreign_codes(library: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same by bitsandbytes."""
    packed, state = library.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=False, quant_type="nf4")
    return packed.flatten(), state.absmax


def _library(tensor: Tensor) -> Any | None:
    """What bitsandbytes is called by, where it is installed and knows the device."""
    is_batched = torch._C._functorch.is_batchedtensor(tensor)  # noqa: SLF001 - under vmap it would run one by one, with a warning
    return None if tensor.is_meta or is_batched else _bitsandbytes()


@cache
def _bitsandbytes() -> Any | None:
    if find_spec("bitsandbytes") is None:
        return None
    # It asks for a package of products that are not called here.
    logger = getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel("ERROR")
    try:
        return import_module("bitsandbytes.functional")
    finally:
        logger.setLevel(level)
