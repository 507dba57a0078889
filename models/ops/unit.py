"""Normalises vectors to length one."""

import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """X / |x| along the last axis: [..., d] -> same; what is shorter than 1e-6 stays short."""
    return F.normalize(x, dim=-1, eps=1e-6)
