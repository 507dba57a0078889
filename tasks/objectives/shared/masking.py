"""Mask ratios over time steps, and the loss weight that belongs to each ratio."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tasks.objectives.shared.checks import check_choice, check_share

ScheduleName = Literal["constant", "linear", "exponential", "cosine"]
LossWeighting = Literal["none", "elbo"]


@dataclass(frozen=True)
class MaskSchedule:
    """The share of tokens to mask, from `first` at time 0 to `last` at time 1, both in [0, 1].

    linear: first + (last - first) t. exponential: first (last / first)^t. cosine: half a wave, flat at both ends,
    first + (last - first) (1 - cos πt) / 2. constant: `first`, and no `last`.
    """

    kind: ScheduleName
    first: float
    last: float | None = None

    def __post_init__(self) -> None:
        check_choice("schedule", self.kind, get_args(ScheduleName))
        check_share(mask_ratio=self.first)
        if self.last is not None:
            check_share(final_mask_ratio=self.last)
        if (self.last is None) != (self.kind == "constant"):
            raise ValueError(f"the constant schedule has no final_mask_ratio, the others need one; {self.kind} got {self.last!r}")
        if self.kind == "exponential" and not (self.first > 0 and self.last):
            raise ValueError(f"the exponential schedule needs ratios above 0; got {self.first} and {self.last}")

    def ratio(self, time: float | np.ndarray) -> np.ndarray:
        """The shares at times in [0, 1], in the shape of the times."""
        times = np.asarray(time, dtype=float)
        if not ((times >= 0) & (times <= 1)).all():
            raise ValueError(f"times must be in [0, 1]; got {times.min()} to {times.max()}")
        if self.last is None:
            return np.full(times.shape, float(self.first))
        return np.clip(_SHAPES[self.kind](times, self.first, self.last), min(self.first, self.last), max(self.first, self.last))


_SHAPES: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "linear": lambda times, first, last: first + (last - first) * times,
    "exponential": lambda times, first, last: first * (last / first) ** times,
    "cosine": lambda times, first, last: first + (last - first) * (1 - np.cos(math.pi * times)) / 2,
}


def loss_weights(weighting: LossWeighting, mask_ratios: np.ndarray) -> np.ndarray:
    """Factors [n] of the losses at the masked positions of sequences with these ratios [n].

    elbo: 1 / ratio (Sahoo et al. 2024, arXiv 2406.07524; Nie et al. 2025, arXiv 2502.09992). The weighted losses, summed, over
    the number of all tokens, masked or not, bound the negative log likelihood per token where ratios are drawn from U(0, 1): the
    linear schedule from 0 to 1, times drawn. A sequence at ratio 0 has nothing to weigh, and 0.
    """
    if weighting == "none":
        return np.ones_like(mask_ratios)
    return np.divide(1.0, mask_ratios, out=np.zeros_like(mask_ratios), where=mask_ratios > 0)
