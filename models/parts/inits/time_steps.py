"""The time steps of state-space models (Gu and Dao 2023, arXiv 2312.00752, section 3.6)."""

from torch import Tensor

from models.ops.recurrences.time_steps import inverse_softplus_of_time_steps


class TimeSteps:
    """A bias whose softplus is log-uniform between `shortest` and `longest`: mamba's dt, the gated delta net's dt_bias."""

    def __init__(self, *, shortest: float = 1e-3, longest: float = 0.1) -> None:
        if not 0 < shortest < longest:
            raise ValueError(f"shortest = {shortest} must be positive and below longest = {longest}")
        self.shortest, self.longest = shortest, longest

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        steps = inverse_softplus_of_time_steps(parameter.numel(), shortest=self.shortest, longest=self.longest)
        parameter.data.copy_(steps.view_as(parameter))
