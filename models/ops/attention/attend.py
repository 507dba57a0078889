"""Softmax attention over all positions, the earlier ones, or a window of them."""

import torch
from torch import Tensor

from models.ops.attention.softmax_attention import softmax_attention
from models.ops.attention.windows import PositionMask, attend_block_by_block, attend_in_blocks, saves_half
from models.ops.transforms import is_transformed


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    window: int | None,
    sinks: Tensor | None = None,
    n_sink_tokens: int = 0,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """softmax(query key^T / sqrt(d_head)) value over the positions that are seen.

    Shapes: query [batch, n_heads, time, d_head], key and value [batch, n_kv_heads, time, d_head] -> query's. A position sees
    itself and what is nearer than `window`: before it, and also after it when not `causal`. Beside a window all see the first
    `n_sink_tokens` positions. `sinks` [n_heads] are the logits of one more position that everyone sees and whose value is zero.
    `attention_mask` [batch, time] bool is false at what only its own position sees.
    """
    time = query.shape[-2]
    mask = PositionMask(causal=causal, window=window, n_sink_tokens=n_sink_tokens, attention_mask=attention_mask)
    if window is not None and _is_looped(query) and (causal or not n_sink_tokens):
        if saves_half(time, causal=causal, window=window, n_sink_tokens=n_sink_tokens):
            return attend_block_by_block(query, key, value, sinks, mask)
    elif window is not None and is_blocked(time, causal=causal, window=window):
        n_first = min(n_sink_tokens, time)
        return attend_in_blocks(query, key, value, sinks, attention_mask, window=window, n_sink_tokens=n_first)
    if attention_mask is None and (window is None or window >= time):
        return softmax_attention(query, key, value, sinks, causal=causal)
    place = torch.arange(time, dtype=torch.int32, device=query.device)
    return softmax_attention(query, key, value, sinks, seen=mask(place, place))


def is_blocked(time: int, *, causal: bool, window: int | None) -> bool:
    """Whether, where blocks are not looped over, the window is narrow enough for the form whose cost is linear in time."""
    return causal and window is not None and 2 * window < time


def attend_flops(
    time: int,
    n_heads: int,
    d_head: int,
    *,
    causal: bool,
    window: int | None,
    has_sinks: bool = False,
    n_sink_tokens: int = 0,
) -> int:
    """Forward operations: scores and values over every position that the chosen form multiplies, seen, masked or padding.

    It is the form for other devices than a CPU, on which a loop over blocks leaves out more.
    """
    if window is not None and is_blocked(time, causal=causal, window=window):
        queries, keys = -(-time // window) * window, n_sink_tokens + 2 * window + has_sinks
    else:
        is_shifted = has_sinks and causal and (window is None or window >= time)
        queries, keys = time + is_shifted, time + has_sinks
    return 4 * queries * keys * n_heads * (d_head + has_sinks)


def _is_looped(tensor: Tensor) -> bool:
    """Whether many small products are faster than one large one: on a CPU, but not for packed models, where each is large."""
    return tensor.device.type == "cpu" and not is_transformed()
