"""Kernels of softmax attention, the newest FlashAttention first, and torch's FlexAttention for windows."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.linears.dtypes import working_dtype
from models.ops.kernels.kernel import FLOATS, HALVES, HOPPER, NO_WINDOW, WINDOWS_ONLY, Kernel, wrong_dtype
from models.ops.kernels.package import FLASH_ATTENTION, FLASH_ATTENTION_3, FLASH_ATTENTION_4, FLEX

NO_SINKS = "it knows no sinks"
NO_MASK = "it knows no padding mask"
BLACKWELL = 10
N_BLOCK = 128
"""Queries, and keys, of a block that FlexAttention skips or computes."""

_MOST_FORMS = 64
"""Compiled forms of FlexAttention in a process, a few for each size of heads. Beyond the limit, by itself 8, torch goes on
without compiling, with all scores of time x time."""


def _flash_by_torch(implementation: str) -> Callable[..., Tensor]:
    """Torch's own flash attention, switched over to an `implementation`: FA3 or FA4, by its package's loaded functions.

    The switch is the process's and stays: a backward pass must find what the forward pass ran.
    """

    def call(
        function: Callable[..., Any],
        *tensors: Tensor,
        causal: bool,
        window: int | None,
        sinks: None = None,
        attention_mask: None = None,
    ) -> Tensor:
        del function, window, sinks, attention_mask
        if attention.current_flash_attention_impl() != implementation:
            attention.activate_flash_attention_impl(implementation)
        query, key, value = (part.to(working_dtype(tensors[0])) for part in tensors)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1])

    return call


def _by_torch_misfit(implementation: str, largest: int) -> Callable[..., str | None]:
    def misfit(
        *tensors: Tensor, causal: bool, window: int | None, sinks: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> str | None:
        time, d_head = tensors[0].shape[-2:]
        if window is not None and window < time:
            return NO_WINDOW
        if d_head > largest:
            return f"heads must be at most {largest}, not {d_head}"
        if not hasattr(attention, "current_flash_attention_impl"):
            return f"torch {torch.__version__} cannot be switched to it (activate_flash_attention_impl)"
        if attention.current_flash_attention_impl() not in (None, implementation):
            return f"torch has been switched to {attention.current_flash_attention_impl()} (activate_flash_attention_impl)"
        return _flash_misfit(*tensors, causal=causal, window=window, sinks=sinks, attention_mask=attention_mask)

    return misfit


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
    if window is None or window >= query.shape[2] or query.shape[2] != key.shape[2]:
        return WINDOWS_ONLY
    if sinks is not None:
        return NO_SINKS
    if attention_mask is not None:
        return NO_MASK
    if value.shape[-1] != d_head or d_head < 16 or d_head & (d_head - 1):
        return f"heads of queries and values must be of one size, a power of two from 16, not {d_head} and {value.shape[-1]}"
    return wrong_dtype(working_dtype(query), FLOATS)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Only compiled it skips what the mask hides."""
    from torch._dynamo import config  # noqa: PLC0415 - takes a second

    limited: Callable[..., Any] = config.patch(recompile_limit=_MOST_FORMS)(torch.compile(function, dynamic=True))
    return limited


@lru_cache(maxsize=64)
def _window_mask(time: int, causal: bool, window: int, device: str) -> Any:  # noqa: FBT001 - a key of the cache
    """What torch's `create_block_mask` makes of the window, from the ends of the blocks: that looks at all time * time places."""
    from torch.nn.attention.flex_attention import BlockMask  # noqa: PLC0415 - takes a second

    farthest_ahead = 0 if causal else 1 - window

    # Tensors are arguments of what is compiled, numbers would be part of it.
    before, after = (torch.tensor(reach, device=device) for reach in (window, 1 if causal else window))

    def is_seen(batch: Tensor, head: Tensor, position: Tensor, other: Tensor) -> Tensor:
        del batch, head
        distance = position - other
        return (distance < before) & (distance > -after)

    first = torch.arange(0, time, N_BLOCK, device=device)
    last = (first + N_BLOCK).clamp(max=time) - 1
    is_whole = last - first == N_BLOCK - 1
    nearest, farthest = first[:, None] - last, last[:, None] - first  # of the distances between two blocks
    any_seen = (nearest < window) & (farthest >= farthest_ahead)
    all_seen = (farthest < window) & (nearest >= farthest_ahead) & is_whole[:, None] & is_whole
    return BlockMask.from_kv_blocks(
        *_counted(any_seen & ~all_seen), *_counted(all_seen), BLOCK_SIZE=N_BLOCK, mask_mod=is_seen, seq_lengths=(time, time)
    )


def _counted(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [rows, columns] -> how many of a row are true [1, 1, rows], and their columns first [1, 1, rows, columns], int32."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1)[None, None].int(), columns[None, None].int()


FLASH_4_ATTEND = Kernel(
    FLASH_ATTENTION_4,
    "flash_attn.cute.interface:flash_attn_func",
    _flash_by_torch("FA4"),
    _by_torch_misfit("FA4", largest=128),
    needs="Hopper or Blackwell, no window, bfloat16 or float16, heads a multiple of 8 up to 128",
    runs_on=(HOPPER, BLACKWELL),
)
FLASH_3_ATTEND = Kernel(
    FLASH_ATTENTION_3,
    "flash_attn_interface:flash_attn_func",
    _flash_by_torch("FA3"),
    _by_torch_misfit("FA3", largest=256),
    needs="Hopper, no window, bfloat16 or float16, heads a multiple of 8 up to 256",
    runs_on=(HOPPER,),
)
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
