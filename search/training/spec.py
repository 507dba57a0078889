"""How a model is trained: the keys that every job has under `train`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from configs import Spec
from search.training.schedules import ScheduleSpec

Device = Literal["auto", "cpu", "cuda"]
TrainPrecision = Literal["auto", "fp32", "bf16", "medium"]
"""float32, autocast to bfloat16, or float32 whose matrix products are rounded: to bfloat16 on a CPU, to TF32 on CUDA (`medium`,
torch's word for it). `auto` is bf16 on CUDA, and on a CPU fp32, unless a job that starts measures that bf16 is faster."""


class TrainSpec(Spec):
    """How members are trained; learning rate and weight decay are the members' own.

    A member stops as `solved` when `stop_metric` exceeds `stop_at`, as `stopped` when it has not improved for `patience`
    evaluations. The best weights are those with the lowest `select_metric`. `precision` is that of training steps
    and of frozen trunks, `scoring_precision` that of scores and teachers; null is as `precision`.
    """

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    schedule: ScheduleSpec = ScheduleSpec()
    grad_clip: PositiveFloat | None = None
    stop_at: float | None = None
    stop_metric: Literal["accuracy", "macro_accuracy"] = "accuracy"
    select_metric: Literal["loss", "perplexity"] = "loss"
    patience: PositiveInt | None = None
    device: Device = "auto"
    precision: TrainPrecision = "auto"
    scoring_precision: TrainPrecision | None = None

    @property
    def scores_in(self) -> TrainPrecision:
        """The precision of scores and teachers."""
        return self.precision if self.scoring_precision is None else self.scoring_precision
