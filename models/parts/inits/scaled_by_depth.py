"""Smaller the deeper the rack, for what is added to the residual stream (Radford et al. 2019, GPT-2, section 2.3)."""

import math

from torch import Tensor, nn

from models.ops.checks import above


class ScaledByDepth:
    """N(0, std / sqrt(2 n_blocks)): each block adds twice to the stream, whose variance then stays that of one addition."""

    def __init__(self, n_blocks: int, *, std: float = 0.02) -> None:
        above(0, std=std)
        self.std = std / math.sqrt(2 * n_blocks)

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        nn.init.normal_(parameter, std=self.std)
