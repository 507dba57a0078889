"""Softmax attention over a window of the positions, block by block: in a loop for a CPU, else in one product."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.attention.softmax_attention import softmax_attention

N_QUERIES = 64
"""In a block of the loop on a CPU. Of 32 to 512 this was the fastest, or close to it, for windows from 5 to 1,024 positions."""


class PositionMask(NamedTuple):
    """Which positions see which, by the options of `attend`."""

    causal: bool
    window: int | None
    n_sink_tokens: int
    attention_mask: Tensor | None

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions [n_queries] and [n_keys] -> bool [n_queries, n_keys], or [batch, 1, n_queries, n_keys] by a mask."""
        distance = queries[:, None] - keys
        if self.window is None:
            seen = torch.ones_like(distance, dtype=torch.bool)
        else:
            seen = (distance if self.causal else distance.abs()) < self.window
            seen = seen | (keys < self.n_sink_tokens) if self.n_sink_tokens else seen
        seen = seen & (distance >= 0) if self.causal else seen
        if self.attention_mask is not None:
            # The own position, or a row of the softmax might be empty: its gradient would be NaN, also under a weight of zero.
            seen = seen & (self.attention_mask[:, None, None, keys] | (distance == 0))
        return seen


class _Block(NamedTuple):
    """The queries from `start` to `end`, which see the first `n_first` keys, and some of those from `begin` to `stop`."""

    start: int
    end: int
    begin: int
    stop: int
    n_first: int


def _blocks(time: int, *, causal: bool, window: int, n_sink_tokens: int) -> Iterator[_Block]:
    for start in range(0, time, N_QUERIES):
        end, begin = min(start + N_QUERIES, time), max(0, start - window + 1)
        yield _Block(start, end, begin, end if causal else min(end + window - 1, time), min(n_sink_tokens, begin))


def saves_half(time: int, *, causal: bool, window: int, n_sink_tokens: int = 0) -> bool:
    """Whether blocks leave out half of all time * time scores: on a CPU, that makes up for what they cost themselves."""
    blocks = _blocks(time, causal=causal, window=window, n_sink_tokens=n_sink_tokens)
    n_scores = sum((block.end - block.start) * (block.n_first + block.stop - block.begin) for block in blocks)
    return 2 * n_scores <= time * time


def attend_block_by_block(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, mask: PositionMask) -> Tensor:
    """Attention with a window in a loop over blocks of queries, each with no keys but those that one of them sees.

    Shapes are those of `attend`. Nothing is as large as time * time, and a window in both directions has no sink tokens.
    """
    assert mask.window is not None
    time, n_first = query.shape[-2], mask.n_sink_tokens
    parts = [(part, part[:, :, :n_first], part.split(N_QUERIES, dim=2)) for part in (key, value)]

    def of_block(block: _Block, part: Tensor, first: Tensor, pieces: Sequence[Tensor]) -> Tensor:
        if not (block.n_first or torch.is_grad_enabled()):
            return part[:, :, block.begin : block.stop]
        # The gradient of a slice is as long as the sequence, that of pieces of one split is put together once.
        number, cut = divmod(block.begin, N_QUERIES)
        own = list(pieces[number : -(-block.stop // N_QUERIES)])
        own[-1] = own[-1][:, :, : block.stop - N_QUERIES * (number + len(own) - 1)]
        return torch.cat((first[:, :, : block.n_first], own[0][:, :, cut:], *own[1:]), dim=2)

    place, mixed = torch.arange(time, device=query.device), []
    blocks = _blocks(time, causal=mask.causal, window=mask.window, n_sink_tokens=n_first)
    for own, block in zip(query.split(N_QUERIES, dim=2), blocks, strict=True):
        positions = torch.cat((place[: block.n_first], place[block.begin : block.stop]))
        seen = mask(place[block.start : block.end], positions)
        own_key, own_value = (of_block(block, *part) for part in parts)
        mixed.append(softmax_attention(own, own_key, own_value, sinks, seen=seen))
    return torch.cat(mixed, dim=2)


def attend_in_blocks(
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
    mixed = softmax_attention(blocks, key, value, sinks, seen=torch.cat([seen] * n_heads, dim=-3))
    return mixed.unflatten(1, (n_heads, n_blocks)).flatten(2, 3)[:, :, :time]
