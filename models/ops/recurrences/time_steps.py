"""The step sizes of state-space models, and how they start."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.precision import in_float32

exact_softplus = in_float32(F.softplus)


def inverse_softplus_of_time_steps(channels: int, *, shortest: float = 1e-3, longest: float = 0.1) -> Tensor:
    """A bias [channels] whose softplus is log-uniform between `shortest` and `longest` (Gu and Dao 2023, section 3.6)."""
    steps = torch.empty(channels).uniform_(math.log(shortest), math.log(longest)).exp()
    return steps + torch.log(-torch.expm1(-steps))
