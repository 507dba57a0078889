"""Settings of one stage, from the run's spec: time steps, schedule, when it ends early."""

from collections.abc import Sequence

from search.jobs.progressive.plan import Stage
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.training.batches import StageTime
from search.training.spec import TrainSpec


def stage_time(spec: ProgressiveSpec, stage: Stage) -> StageTime:
    """The times of a stage's samples. The joint stage has those of the newest stack."""
    growth = spec.growth
    return StageTime(
        interpretation=growth.time_interpretation,
        n_steps=spec.n_time_steps,
        step=spec.depth_time().time_step(stage.created) if growth.time_interpretation == "depth" else 0,
        sampling=growth.time_sampling,
    )


def train_spec(spec: ProgressiveSpec, stage: Stage) -> TrainSpec:
    """How a stage trains: where the last one alone decays, the others stay at their peak after the warm-up."""
    if spec.decay == "each" or stage.index == spec.n_stages - 1 or spec.train.schedule.kind == "constant":
        return spec.train
    return spec.train.model_copy(update={"schedule": spec.train.schedule.model_copy(update={"kind": "constant"})})


def is_plateau(losses: Sequence[float], spec: ProgressiveSpec) -> bool:
    """Whether the last `patience` evaluations have not brought the loss down by `min_delta` from the best before them."""
    patience, min_delta = spec.growth.patience, spec.growth.min_delta
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience]) - min_delta
