"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from configs import Spec


class ScheduleSpec(Spec):
    """How the learning rate runs over the steps.

    `constant`; `cosine` down to `min_lr`; `wsd` (warm-up, stable, decay): constant, then linear down to `min_lr` over the last
    `decay_fraction` of all steps, or what the warm-up leaves of them. All start with `warmup_steps` of linear rise, the last of
    which has the peak; the last step of all has `min_lr`. MAD's reference trains at a constant rate, its paper says cosine.
    """

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    warmup_steps: NonNegativeInt = 0
    min_lr: NonNegativeFloat = 1e-6
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2


def learning_rate(schedule: ScheduleSpec, peak: float, step: int, n_steps: int) -> float:
    """The rate of step `step` (the first is 0) of `n_steps`; a run of a single step has the peak."""
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant" or n_steps == 1:
        return peak
    floor = min(schedule.min_lr, peak)
    n_after, n_rest = n_steps - 1 - step, n_steps - schedule.warmup_steps
    if schedule.kind == "cosine":
        return floor + (peak - floor) * 0.5 * (1 - math.cos(math.pi * n_after / max(1, n_rest - 1)))
    n_falling = min(max(1, round(schedule.decay_fraction * n_steps)), n_rest)
    return floor + (peak - floor) * min(1.0, n_after / n_falling)
