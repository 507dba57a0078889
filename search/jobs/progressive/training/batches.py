"""GrowthBatches: the batches of a stage, by step; which samples, in which variant, at which time step."""

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from search.training.devices import moved
from tasks import IGNORED, Split
from tasks.objectives.shared.objective import Draw, Objective
from tasks.permutation import permuted, permuted_run
from tasks.samples.objective_batches import StageTime, apply_objective
from tasks.samples.samples import Samples

__all__ = ["HELD_OUT", "GrowthBatch", "GrowthBatches", "StageTime"]

HELD_OUT = -1
"""The stage of the draws of evaluation: no stage trains on them, and all are measured by the same ones."""


class GrowthBatch(NamedTuple):
    """Rows of samples: what a model reads, and what it is asked.

    `inputs`, corrupted, `targets`, `IGNORED` where nothing is asked, and `clean`, the tokens as they were: [rows, time] int64.
    `(cross_entropy * weights).sum()`, summed over ranks, is the loss of the whole batch, for `weights` [rows, time] float32 in
    which all of it counts: the mean over asked positions; or, of losses weighed by the bound of masked diffusion, their sum over
    the number of kept tokens. So gradients are summed over ranks, not averaged. One that asks nothing has no loss.

    `sample_ids` [rows] int64 and `variants` [rows] int32, on the CPU, are what a cache knows rows by. `time_steps` [rows] int64
    are what a rack is told, None where time is no input of it. `attention_mask` [rows, time] bool is False at pads; None where
    the samples have no pads at all: by the batch, the same row would be computed now with a mask and now without one.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    clean: Tensor
    sample_ids: Tensor
    variants: Tensor
    time_steps: Tensor | None
    attention_mask: Tensor | None


class GrowthBatches:
    """`batches[step]` is this rank's part of the step's batch: every rank knows the whole batch and takes rows `rank::n_ranks`.

    Samples are gone through in epochs, each in an order of its own; a batch may end one and begin the next. Their corruptions are
    functions of (seed, stage, sample, variant), where the variant is the epoch, or the epoch modulo `n_variants`, of which a
    cache can hold all. It is 0 where neither the objective nor the time makes variants differ.

    Raises:
        ConfigError: if there are fewer rows than ranks.
    """

    def __init__(
        self,
        samples: Samples,
        objective: Objective,
        *,
        stage: int,
        time: StageTime,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        n_ranks: int = 1,
        n_variants: int | None = None,
    ) -> None:
        if n_ranks > batch_size:
            raise ConfigError(
                f"batch_size {batch_size} over {n_ranks} workers leaves some without a row; give at least {n_ranks}"
            )
        self.samples, self.objective = samples, objective
        self.stage, self.time, self.seed = stage, time, seed
        self.batch_size, self.device = batch_size, device
        self.n_samples, self.n_positions = samples.n_samples("train"), samples.seq_len
        self.steps_per_epoch = -(-self.n_samples // batch_size)
        self._varies = objective.corrupts or time.interpretation == "input"
        self.n_variants = n_variants if self._varies else 1
        self._mine = slice(rank, None, n_ranks)
        self._asks = -1, False

    @property
    def sample_ids(self) -> np.ndarray:
        """Of all samples that are trained on."""
        return np.arange(self.n_samples)

    @property
    def is_cacheable(self) -> bool:
        """Whether rows are functions of sample and variant; those with one time step a batch hang on the step."""
        return self.time.interpretation != "input" or self.time.sampling == "sample"

    def corruption(self) -> dict[str, Any]:
        """What makes the inputs of (sample, variant) from the sample; empty where they are the tokens as they are."""
        if not self._varies:
            return {}
        objective = {"kind": type(self.objective).__name__.lower(), **asdict(self.objective)}
        return {"objective": objective, "time": asdict(self.time), "stage": self.stage, "seed": self.seed}

    def fingerprint(self) -> str:
        """That of the samples: with `corruption`, all that a row depends on."""
        return self.samples.fingerprint()

    def __getitem__(self, step: int) -> GrowthBatch:
        epochs, positions = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.n_samples)
        numbers = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            numbers[mine] = self._numbers(int(positions[mine][0]), int(mine.sum()), epoch)
        variants = epochs if self.n_variants is None else epochs % self.n_variants
        return self._batch("train", numbers, variants, step=step, rows=self._mine)

    def asks_at(self, step: int) -> bool:
        """Whether the whole batch of a step, over all ranks, has a supervised position; free for the one that was drawn last."""
        if self._asks[0] != step:
            _ = self[step]
        return self._asks[1]

    def requested(self, n_steps: int) -> dict[int, np.ndarray]:
        """The samples, by variant, that so many steps come to."""
        n_whole, n_left = divmod(n_steps * self.batch_size, self.n_samples)
        n_variants = n_whole + 1 if self.n_variants is None else self.n_variants
        found = dict.fromkeys(range(min(n_whole, n_variants)), self.sample_ids)
        if n_left and (variant := n_whole % n_variants) not in found:
            found[variant] = np.sort(self._numbers(0, n_left, n_whole))
        return found

    def _numbers(self, first: int, n: int, epoch: int) -> np.ndarray:
        """Which samples stand at `n` positions of an epoch from the first of these on."""
        return permuted_run(first, n, self.n_samples, "growth", self.seed, self.stage, epoch)

    def rows(self, sample_ids: np.ndarray, variant: int) -> GrowthBatch:
        """Training samples by id [n], as they are in a variant: all of them on every rank.

        Raises:
            ValueError: where rows hang on the step.
        """
        if not self.is_cacheable:
            raise ValueError("with one time step a batch, rows are none of a sample and a variant; draw times by sample")
        return self._batch("train", sample_ids, np.full(len(sample_ids), variant))

    def evaluation(self, n_batches: int, batch_size: int) -> list[GrowthBatch]:
        """Batches of the validation split, whole on every rank, and the same at every call and in every stage but for its time.

        Raises:
            ConfigError: if there are fewer samples: none is scored twice; or if they are asked nothing.
        """
        n_rows, n_samples = n_batches * batch_size, self.samples.n_samples("validation")
        if n_rows > n_samples:
            text = f"{n_batches} batches of {batch_size} need {n_rows} samples, but the validation split has {n_samples}"
            raise ConfigError(f"{text}; give fewer, more data, or a shorter seq_len")
        numbers = permuted(np.arange(n_rows), n_samples, "growth", self.seed, "validation")
        parts = numbers.reshape(n_batches, batch_size)
        batches = [self._batch("validation", part, np.zeros(batch_size, dtype=np.int64)) for part in parts]
        if not any((batch.targets != IGNORED).any() for batch in batches):
            text = f"none of the {n_rows} held-out samples has a supervised position, so there is no loss to go by"
            raise ConfigError(f"{text}; give more or longer ones, or an objective that asks for more (a higher mask_ratio)")
        return batches

    def _batch(
        self,
        split: Split,
        numbers: np.ndarray,
        variants: np.ndarray,
        *,
        step: int | None = None,
        rows: slice = slice(None),
    ) -> GrowthBatch:
        batch = self.samples.sequences(split, numbers)
        draw = Draw(seed=self.seed, stage=HELD_OUT if split == "validation" else self.stage)
        target_batch = apply_objective(self.objective, batch, time=self.time, draw=draw, variants=variants, training_step=step)
        if step is not None:
            self._asks = step, bool((target_batch.targets != IGNORED).any())
        return GrowthBatch(
            inputs=moved(target_batch.inputs[rows], self.device),
            targets=moved(target_batch.targets[rows], self.device),
            weights=moved(target_batch.weights[rows], self.device),
            clean=moved(batch.tokens[rows].astype(np.int64), self.device),
            sample_ids=torch.from_numpy(batch.sample_ids[rows].astype(np.int64)),
            variants=torch.from_numpy(variants[rows].astype(np.int32)),
            time_steps=moved(target_batch.time_steps[rows], self.device) if self.time.interpretation == "input" else None,
            attention_mask=None if batch.attention_mask is None else moved(batch.attention_mask[rows], self.device),
        )
