"""The fixed table of sines and cosines that tells positions apart (Vaswani et al. 2017, arXiv 1706.03762)."""

import math

import torch
from torch import Tensor


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Sines in the first half of the channels, cosines in the second, wavelengths from 2π to 20000π: [length, d_model].

    Raises:
        ValueError: if `d_model` is odd.
    """
    if d_model % 2:
        raise ValueError(f"d_model {d_model} is odd, but half of the position table is sines and half cosines")
    half = d_model // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10_000.0) / max(half - 1, 1)))
    angles = torch.arange(length).unsqueeze(1) * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)
