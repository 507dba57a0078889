"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from configs import Spec


class ScheduleSpec(Spec):
    """How the learning rate runs over the steps.

    `constant`; `cosine` down to `min_lr`; `wsd` (warm-up, stable, decay): constant, then linear down to `min_lr` over the last
    `decay_fraction` of the steps. All start with `warmup_steps` of linear rise. The MAD reference code trains at a constant rate;
    its paper says cosine.
    """

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    warmup_steps: NonNegativeInt = 0
    min_lr: NonNegativeFloat = 1e-6
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2


def learning_rate(schedule: ScheduleSpec, peak: float, step: int, n_steps: int) -> float:
    """The rate of step `step` (the first is 0) of `n_steps`."""
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, n_steps - schedule.warmup_steps)
    floor = min(schedule.min_lr, peak)
    if schedule.kind == "cosine":
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.kind == "wsd":
        return floor + (peak - floor) * min(1.0, (1 - progress) / schedule.decay_fraction)
    return peak
