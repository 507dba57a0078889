"""The head axis: split off the channels, and merged back."""

from torch import Tensor


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[batch, time, n_heads * d_head] -> [batch, n_heads, time, d_head]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, n_heads, time, d_head] -> [batch, time, n_heads * d_head]."""
    return x.transpose(1, 2).flatten(-2)
