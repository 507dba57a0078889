"""The time steps of stacks by their depth, as the mappings linear and exponential say them."""

import math
from typing import Literal

STEEPNESS = 3.0
"""Of the exponential mapping."""


def depth_step(
    mapping: Literal["linear", "exponential"], index: int, *, max_stacks: int, time_per_stack: int, n_time_steps: int
) -> int:
    """The step of the stack that was created after `index` others, from 0 to N - 1.

    linear: min(index * time_per_stack, N - 1). exponential: round((N - 1) (e^{a index / (S - 1)} - 1) / (e^a - 1)) for S stacks,
    a = 3: from 0 to N - 1.
    """
    last = n_time_steps - 1
    if mapping == "linear":
        return min(index * time_per_stack, last)
    return round(last * math.expm1(STEEPNESS * index / max(max_stacks - 1, 1)) / math.expm1(STEEPNESS))
