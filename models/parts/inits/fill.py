"""Initial value: one number everywhere."""

from torch import Tensor, nn


class Fill:
    """Every number is `value`."""

    def __init__(self, *, value: float) -> None:
        self.value = value

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        nn.init.constant_(parameter, self.value)
