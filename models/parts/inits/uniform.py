"""Initial values from a uniform distribution."""

from torch import Tensor, nn


class Uniform:
    """U(low, high)."""

    def __init__(self, *, low: float, high: float) -> None:
        if low >= high:
            raise ValueError(f"low = {low} must be below high = {high}")
        self.low, self.high = low, high

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        nn.init.uniform_(parameter, self.low, self.high)
