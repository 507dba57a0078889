"""Softmax attention over all positions, the earlier ones, or a window of them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None) -> Tensor:
    """softmax(query key^T / sqrt(d_head)) value over the positions that are seen.

    Shapes: query [batch, n_heads, time, d_head], key and value [batch, n_kv_heads, time, d_head] -> query's. A position sees
    itself and what is nearer than `window`: before it, and also after it when not `causal`.
    """
    time = query.shape[-2]
    if window is None or window >= time:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=_is_grouped(query, key))
    if is_blocked(time, causal=causal, window=window):
        return _attend_in_blocks(query, key, value, window)
    place = torch.arange(time, device=query.device)
    distance = place[:, None] - place
    seen = (distance.abs() < window) & ((distance >= 0) | (not causal))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=_is_grouped(query, key))


def is_blocked(time: int, *, causal: bool, window: int | None) -> bool:
    """Whether the window is narrow enough for the form whose cost is linear in time."""
    return causal and window is not None and 2 * window < time


def _is_grouped(query: Tensor, key: Tensor) -> bool:
    return query.shape[1] != key.shape[1]


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Causal attention in blocks of `window` positions, each of which sees its own block and the one before."""
    n_heads, time = query.shape[1:3]
    n_blocks = -(-time // window)
    padding = n_blocks * window - time
    group = n_heads // key.shape[1]

    def with_previous(x: Tensor) -> Tensor:
        x = F.pad(x.repeat_interleave(group, dim=1), (0, 0, window, padding))
        earlier, own = (part.unflatten(2, (n_blocks, window)) for part in (x[:, :, :-window], x[:, :, window:]))
        return torch.cat((earlier, own), dim=3).flatten(1, 2)

    blocks = F.pad(query, (0, 0, 0, padding)).unflatten(2, (n_blocks, window)).flatten(1, 2)
    place = torch.arange(2 * window, device=query.device)
    distance = place[window:, None] - place
    seen = ((distance >= 0) & (distance < window)).repeat(n_blocks, 1, 1)
    seen[0, :, :window] = False  # nothing comes before the first block
    mixed = F.scaled_dot_product_attention(blocks, with_previous(key), with_previous(value), attn_mask=seen.repeat(n_heads, 1, 1))
    return mixed.unflatten(1, (n_heads, n_blocks)).flatten(2, 3)[:, :, :time]
