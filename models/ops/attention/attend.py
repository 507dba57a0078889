"""Softmax attention over all positions, the earlier ones, or a window of them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


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
    if window is not None and is_blocked(time, causal=causal, window=window):
        n_first = min(n_sink_tokens, time)
        return _attend_in_blocks(query, key, value, sinks, attention_mask, window=window, n_sink_tokens=n_first)
    if attention_mask is None and (window is None or window >= time):
        return _softmax(query, key, value, sinks, causal=causal)
    place = torch.arange(time, device=query.device)
    distance = place[:, None] - place
    seen = (distance >= 0) | (not causal)
    if window is not None:
        seen = seen & ((distance.abs() < window) | (place < n_sink_tokens))
    if attention_mask is not None:
        # The own position, or a row of the softmax might be empty: its gradient would be NaN, also under a weight of zero.
        seen = seen & (attention_mask[:, None, None, :] | (distance == 0))
    return _softmax(query, key, value, sinks, seen=seen)


def is_blocked(time: int, *, causal: bool, window: int | None) -> bool:
    """Whether the window is narrow enough for the form whose cost is linear in time."""
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
    """Forward operations: scores and values over every position that the chosen form multiplies, seen, masked or padding."""
    if window is not None and is_blocked(time, causal=causal, window=window):
        queries, keys = -(-time // window) * window, n_sink_tokens + 2 * window + has_sinks
    else:
        is_shifted = has_sinks and causal and (window is None or window >= time)
        queries, keys = time + is_shifted, time + has_sinks
    return 4 * queries * keys * n_heads * (d_head + has_sinks)


def _softmax(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, *, causal: bool = False, seen: Tensor | None = None
) -> Tensor:
    """Attention over all keys, the earlier ones, or those `seen` [..., queries, keys]."""
    is_grouped = query.shape[1] != key.shape[1]
    if sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal, enable_gqa=is_grouped)
    # One more channel carries the sinks: they are in the queries, and one in the key of the sink alone, which comes first. The
    # fused kernels know neither sinks nor masks that learn, and want queries, keys and values of one size.
    d_head = query.shape[-1]
    logits = (math.sqrt(d_head) * sinks).to(query.dtype)[:, None, None]
    query = torch.cat((query, logits.expand(*query.shape[:-1], 1)), dim=-1)
    key, value = F.pad(key, (0, 1, 1, 0)), F.pad(value, (0, 1, 1, 0))
    key = key + F.pad(key.new_ones(1, 1), (d_head, 0, 0, key.shape[-2] - 1))
    # The sink has no query, but to be causal all must be as far on as their keys.
    query = F.pad(query, (0, 0, 1, 0)) if causal else query
    seen = None if seen is None else F.pad(seen, (1, 0), value=True)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, is_causal=causal, enable_gqa=is_grouped, scale=1 / math.sqrt(d_head)
    )
    return mixed[..., int(causal) :, :d_head]


def _attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    attention_mask: Tensor | None,
    *,
    window: int,
    n_sink_tokens: int,
) -> Tensor:
    """Causal attention in blocks of `window` positions, each of which sees the first tokens, the block before and its own."""
    n_heads, time = query.shape[1:3]
    n_blocks = -(-time // window)
    padding = n_blocks * window - time
    group = n_heads // key.shape[1]

    def with_previous(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, window, padding))
        earlier, own = (part.unflatten(2, (n_blocks, window)) for part in (x[:, :, :-window], x[:, :, window:]))
        first = x[:, :, None, window : window + n_sink_tokens].expand(-1, -1, n_blocks, -1, -1)
        return torch.cat((first, earlier, own), dim=3).flatten(1, 2)

    blocks = F.pad(query, (0, 0, 0, padding)).unflatten(2, (n_blocks, window)).flatten(1, 2)
    place = torch.arange(2 * window, device=query.device)
    distance = place[window:, None] - place
    seen = ((distance >= 0) & (distance < window)).repeat(n_blocks, 1, 1)
    seen[0, :, :window] = False  # nothing comes before the first block
    if n_sink_tokens:
        positions = torch.arange(n_blocks * window, device=query.device).view(n_blocks, window, 1)
        is_behind = positions - place.new_tensor(range(n_sink_tokens)) >= window  # else it is seen in the window already
        seen, distance = torch.cat((is_behind, seen), dim=-1), F.pad(distance, (n_sink_tokens, 0), value=-1)
    if attention_mask is not None:
        kept = with_previous(attention_mask[:, None, :, None]).squeeze(-1)  # [batch, n_blocks, n_sink_tokens + 2 * window]
        seen = seen & (kept[:, :, None, :] | (distance == 0))
    sinks = None if sinks is None else sinks.repeat_interleave(n_blocks)
    key, value = (with_previous(part.repeat_interleave(group, dim=1)) for part in (key, value))
    mixed = _softmax(blocks, key, value, sinks, seen=torch.cat([seen] * n_heads, dim=-3))
    return mixed.unflatten(1, (n_heads, n_blocks)).flatten(2, 3)[:, :, :time]
