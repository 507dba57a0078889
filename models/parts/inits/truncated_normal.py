"""Initial values from a normal distribution without its tails."""

from torch import Tensor, nn

from models.ops.checks import above


class TruncatedNormal:
    """N(0, std), drawn again beyond `cut` standard deviations."""

    def __init__(self, *, std: float = 0.02, cut: float = 3.0) -> None:
        above(0, std=std, cut=cut)
        self.std, self.bound = std, cut * std

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        nn.init.trunc_normal_(parameter, std=self.std, a=-self.bound, b=self.bound)
