"""Applies an objective to a batch of samples: inputs, targets and loss weights, each row at its own time step."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tasks.objectives.shared.objective import Draw, Objective, Sequences
from tasks.objectives.shared.time_steps import as_times, time_steps_of_batch, time_steps_of_samples
from tasks.samples.samples import taken
from tasks.task import IGNORED


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """The time of a stage's samples: time step `step` of `n_steps` for all (`depth`), drawn (`input`), or 0 (`none`).

    What is drawn is one time step for each batch of training, or one for each sample. Where there is no training step, as in
    evaluation, it is one for each sample in either case.
    """

    interpretation: Literal["none", "depth", "input"] = "none"
    n_steps: int = 1
    step: int = 0
    sampling: Literal["batch", "sample"] = "batch"

    def steps(self, sample_ids: np.ndarray, draw: Draw, training_step: int | None = None) -> np.ndarray:
        """Time steps [n] int64 of samples."""
        if self.interpretation != "input":
            return np.full(len(sample_ids), self.step if self.interpretation == "depth" else 0)
        if self.sampling == "batch" and training_step is not None:  # one for all rows, of whatever variant
            return time_steps_of_batch(self.n_steps, len(sample_ids), replace(draw, variant=0), training_step)
        return time_steps_of_samples(self.n_steps, sample_ids, draw)


@dataclass(frozen=True, kw_only=True)
class TargetBatch:
    """Inputs, corrupted, and targets, `IGNORED` where nothing is asked: [n, time] int64; `weights` [n, time] float32.

    `(cross_entropy * weights).sum()` is the loss: the mean over asked positions; or, of losses weighed by the bound of masked
    diffusion, their sum over the number of kept tokens. Where all weights are 0 nothing is asked, and there is no loss.
    `clm_mask` [time] is False where no sequence could be asked. `time_steps` [n] int64.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    clm_mask: np.ndarray
    time_steps: np.ndarray


def apply_objective(
    objective: Objective,
    batch: Sequences,
    *,
    time: StageTime,
    draw: Draw,
    variants: np.ndarray | None = None,
    training_step: int | None = None,
) -> TargetBatch:
    """Ask a whole batch, each row in its variant [n]; None is that of the draw for all."""
    inputs, targets = np.empty(batch.tokens.shape, dtype=np.int64), np.empty(batch.tokens.shape, dtype=np.int64)
    weights, time_steps = np.empty(batch.tokens.shape), np.empty(len(batch.tokens), dtype=np.int64)
    clm_mask = np.ones(batch.tokens.shape[1], dtype=bool)
    variants = np.full(len(batch.tokens), draw.variant) if variants is None else variants
    for variant in np.unique(variants).tolist():
        rows = np.flatnonzero(variants == variant)
        part, own_draw = taken(batch, rows), replace(draw, variant=variant)
        time_steps[rows] = time.steps(part.sample_ids, own_draw, training_step)
        asked = objective.apply(part, own_draw, as_times(time_steps[rows], time.n_steps))
        inputs[rows], targets[rows], clm_mask = asked.inputs, asked.targets, asked.clm_mask
        weights[rows] = asked.loss_mask * asked.loss_weights[:, None]
    is_bound = getattr(objective, "loss_weighting", "none") == "elbo"
    weights /= max(int((batch.kept if is_bound else targets != IGNORED).sum()), 1)
    return TargetBatch(
        inputs=inputs, targets=targets, weights=weights.astype(np.float32), clm_mask=clm_mask, time_steps=time_steps
    )
