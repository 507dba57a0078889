"""Cuts the time axis into chunks and puts it back together."""

import torch.nn.functional as F
from torch import Tensor

CHUNK = 32
"""Positions that are computed as attention, where nothing in them overflows."""


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """[..., time, channels] -> [..., n_chunks, chunk, channels], with zeros after the end."""
    padding = -x.shape[-2] % chunk
    x = F.pad(x, (0, 0, 0, padding)) if padding else x
    return x.unflatten(-2, (-1, chunk))


def join_chunks(x: Tensor, time: int) -> Tensor:
    """[..., n_chunks, chunk, channels] -> [..., time, channels], without what was added after the end."""
    return x.flatten(-3, -2)[..., :time, :]


def before_each(added: Tensor) -> Tensor:
    """Sum of what earlier chunks added: [..., n_chunks, rows, columns] -> same; the first chunk has zeros."""
    return F.pad(added.cumsum(-3)[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
