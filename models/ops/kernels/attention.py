"""Kernels of softmax attention: FlashAttention, and torch's FlexAttention for windows."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from models.linears.dtypes import working_dtype
from models.ops.kernels.kernel import FLOATS, HALVES, Kernel, wrong_dtype
from models.ops.kernels.package import FLASH_ATTENTION, FLEX

NO_SINKS = "it knows no sinks"
NO_MASK = "it knows no padding mask"


def _flash(
    function: Callable[..., Tensor],
    *tensors: Tensor,
    causal: bool,
    window: int | None,
    sinks: None = None,
    attention_mask: None = None,
) -> Tensor:
    """[batch, time, n_heads, d_head] there; its window counts the positions to either side, -1 for all, and causal cuts it."""
    del sinks, attention_mask
    dtype = working_dtype(tensors[0])
    reach = -1 if window is None else window - 1
    mixed = function(
        *(part.transpose(1, 2).to(dtype) for part in tensors),
        causal=causal,
        window_size=(reach, reach),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return mixed.transpose(1, 2)


def _flash_misfit(
    *tensors: Tensor, causal: bool, window: int | None, sinks: Tensor | None = None, attention_mask: Tensor | None = None
) -> str | None:
    query, key, value = tensors
    d_head = query.shape[-1]
    if sinks is not None:
        return NO_SINKS
    if attention_mask is not None:
        return NO_MASK
    if value.shape[-1] != d_head or d_head % 8 or d_head > 256:
        return f"heads of queries and values must be of one size, a multiple of 8 up to 256, not {d_head} and {value.shape[-1]}"
    # With fewer queries than keys it aligns their ends, torch their starts.
    if (causal or window is not None) and query.shape[2] != key.shape[2]:
        return "a causal mask or a window needs as many queries as keys"
    return wrong_dtype(working_dtype(query), HALVES)


def _flex(
    function: Callable[..., Any], *tensors: Tensor, causal: bool, window: int, sinks: None = None, attention_mask: None = None
) -> Tensor:
    del sinks, attention_mask
    query, key, value = (part.to(working_dtype(tensors[0])) for part in tensors)
    mask = _window_mask(query.shape[2], causal, window, str(query.device))
    mixed: Tensor = _compiled(function)(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
    return mixed


def _flex_misfit(
    *tensors: Tensor, causal: bool, window: int | None, sinks: Tensor | None = None, attention_mask: Tensor | None = None
) -> str | None:
    del causal
    query, key, value = tensors
    d_head = query.shape[-1]
    if sinks is not None:
        return NO_SINKS
    if attention_mask is not None:
        return NO_MASK
    if window is None or window >= query.shape[2] or query.shape[2] != key.shape[2]:
        return "it is for windows shorter than the sequence"
    if value.shape[-1] != d_head or d_head < 16 or d_head & (d_head - 1):
        return f"heads of queries and values must be of one size, a power of two from 16, not {d_head} and {value.shape[-1]}"
    return wrong_dtype(working_dtype(query), FLOATS)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Only compiled it skips what the mask hides."""
    return torch.compile(function)


@lru_cache(maxsize=64)
def _window_mask(time: int, causal: bool, window: int, device: str) -> Any:  # noqa: FBT001 - a key of the cache
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415 - takes a second

    def is_seen(batch: Tensor, head: Tensor, position: Tensor, other: Tensor) -> Tensor:
        del batch, head
        distance = position - other
        return (distance < window) & (distance >= (0 if causal else 1 - window))

    return create_block_mask(is_seen, None, None, time, time, device=device)


FLASH_ATTEND = Kernel(
    FLASH_ATTENTION,
    "flash_attn:flash_attn_func",
    _flash,
    _flash_misfit,
    needs="bfloat16 or float16, heads a multiple of 8 up to 256",
)
FLEX_ATTEND = Kernel(
    FLEX,
    "torch.nn.attention.flex_attention:flex_attention",
    _flex,
    _flex_misfit,
    needs="a window shorter than the sequence, heads a power of two from 16",
)
