"""Initial value: all ones."""

from torch import Tensor, nn


class Ones:
    """Every number is 1.0."""

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        nn.init.ones_(parameter)
