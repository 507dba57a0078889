"""The initial step sizes of state-space models."""

import math

import torch
from torch import Tensor


def inverse_softplus_of_time_steps(channels: int, *, shortest: float = 1e-3, longest: float = 0.1) -> Tensor:
    """A bias [channels] whose softplus is log-uniform between `shortest` and `longest` (Gu and Dao 2023, section 3.6)."""
    steps = torch.empty(channels).uniform_(math.log(shortest), math.log(longest)).exp()
    return steps + torch.log(-torch.expm1(-steps))
