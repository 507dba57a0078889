"""Initial value: all zeros."""

from torch import Tensor, nn


class Zeros:
    """Every number is 0.0."""

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        nn.init.zeros_(parameter)
