"""Initial values from a normal distribution."""

from torch import Tensor, nn

from models.ops.checks import above


class Normal:
    """N(mean, std)."""

    def __init__(self, *, std: float = 0.02, mean: float = 0.0) -> None:
        above(0, std=std)
        self.std, self.mean = std, mean

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        nn.init.normal_(parameter, self.mean, self.std)
