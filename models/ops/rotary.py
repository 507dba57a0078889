"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split form."""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate [..., time, d_head] by `positions` [time]; channel i pairs with channel i + d_head / 2.

    The pair i turns by position * base ** (-2 i / d_head). Angles are float32 whatever x is: bfloat16 cannot count past 256.
    """
    half = x.shape[-1] // 2
    exact = torch.promote_types(x.dtype, torch.float32)
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=exact) / half)
    angles = positions.to(exact)[:, None] * frequencies
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
