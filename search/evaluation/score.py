"""The score of a placement: a number with its error, and the batches it was measured on, for paired comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Score:
    """How good a placement is on fixed batches; higher is better (the loss counts negatively).

    `value` is the mean over tasks, weighted by `shares`, of the means over batches. `batches` has the measurements, per task and
    batch, and `tasks` their means. `standard_error` is that of the value over batches; it says how far another draw of batches
    might move it, and nothing about the difference of two scores on the same batches: that is `paired_difference`. It is None
    where a single batch, or a measurement that is not finite, tells nothing of it.

    A placement that a race dropped was measured on the first `n_batches` alone, and `is_estimate`: its `value` is what it would
    have on all batches if it kept its distance to the survivors, and below all of theirs; `tasks` are plain means.
    """

    value: float
    standard_error: float | None
    tasks: dict[str, float]
    batches: dict[str, list[float]]
    shares: dict[str, float]
    n_batches: int
    is_estimate: bool = False

    def __float__(self) -> float:
        return self.value

    @classmethod
    def of(cls, batches: Mapping[str, Sequence[float]], shares: Mapping[str, float]) -> Self:
        """From the measurements [n_batches] of each task."""
        combined = combine(batches, shares)
        mean, error = mean_and_error(combined)
        tasks = {task: float(np.mean(values)) for task, values in batches.items()}
        return cls(mean, error, tasks, {task: list(values) for task, values in batches.items()}, dict(shares), len(combined))


def combine(batches: Mapping[str, Sequence[float]], shares: Mapping[str, float]) -> np.ndarray:
    """One series over batches: the weighted mean over tasks."""
    return np.sum([shares[task] * np.asarray(values, dtype=np.float64) for task, values in batches.items()], axis=0)


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean and its standard error, None where a single value, or one that is not finite, tells nothing of it."""
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(values).all():
        return mean, None
    return mean, float(values.std(ddof=1)) / math.sqrt(len(values))


def paired_difference(first: Score, second: Score) -> tuple[float, float | None]:
    """How much higher the first score is, on the batches that both were measured on: mean and standard error.

    The mean is not finite where one of the two is not.
    """
    ours, theirs = (combine(score.batches, score.shares) for score in (first, second))
    n_common = min(len(ours), len(theirs))
    with np.errstate(invalid="ignore"):  # both minus infinity
        return mean_and_error(ours[:n_common] - theirs[:n_common])
