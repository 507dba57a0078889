"""Half a wave of a cosine: times change slowly at both ends."""

import math


class Cosine:
    """(N - 1) (1 - cos(pi index / (S - 1))) / 2 for S stacks and N time steps; a single stack has time 0."""

    def __call__(self, stack_idx: int, max_stacks: int, num_time_steps: int) -> float:
        """The time step of the stack that was created after so many others."""
        return (num_time_steps - 1) * (1 - math.cos(math.pi * stack_idx / max(max_stacks - 1, 1))) / 2
