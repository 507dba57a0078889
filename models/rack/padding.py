"""TokensFirst: padded rows put so that pads come after all tokens, where no causal mixer sees them, and back."""

import torch
from torch import Tensor


class TokensFirst:
    """The order in which each row begins with its tokens, as they followed each other, and ends with its pads.

    So pads have no effect, wherever they stand: what looks back (a recurrence, a convolution, a shift, a window, positions) meets
    tokens alone, counted without the pads. What looks ahead is told of them by `attention_mask`, that of the new order.
    """

    def __init__(self, attention_mask: Tensor) -> None:
        n_tokens = attention_mask.sum(-1, keepdim=True)
        self._kept = attention_mask
        # By where each position goes, not by a sort: that knows no vmap over masks.
        self._places = torch.where(attention_mask, attention_mask.cumsum(-1), n_tokens + (~attention_mask).cumsum(-1)) - 1
        self.attention_mask = torch.arange(attention_mask.shape[-1], device=attention_mask.device) < n_tokens

    def put(self, x: Tensor) -> Tensor:
        """[batch, time, ...] -> same, in the new order, with zeros at pads: what stood there is not read."""
        index = self._index(x)
        return torch.zeros_like(x).scatter(1, index, x.masked_fill(~_like(self._kept, x), 0))

    def put_back(self, x: Tensor) -> Tensor:
        """[batch, time, ...] in the new order -> same, in the order of before."""
        return x.gather(1, self._index(x))

    def _index(self, x: Tensor) -> Tensor:
        return _like(self._places, x).expand_as(x)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """[batch, time] -> [batch, time, 1, ...], as many axes as x has."""
    return rows.reshape(*rows.shape, *[1] * (x.dim() - rows.dim()))


def mean_over_tokens(values: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean of [..., channels] over positions, pads of the mask [...] left out: [channels]; zero where all are pads."""
    rows = values.reshape(-1, values.shape[-1])
    if attention_mask is None:
        return rows.mean(0)
    kept = attention_mask.reshape(-1, 1)
    return rows.masked_fill(~kept, 0).sum(0) / kept.sum().clamp(min=1)


def check_attention_mask(attention_mask: Tensor, x: Tensor) -> None:
    """ValueError where a mask is not bool of the batch and time of [batch, time, ...]."""
    if attention_mask.dtype != torch.bool or attention_mask.shape != x.shape[:2]:
        found = f"{attention_mask.dtype} {list(attention_mask.shape)}"
        raise ValueError(f"attention_mask must be bool {list(x.shape[:2])}, true at tokens; got {found}")
