"""Several tasks trained at once, by weight: batches as a pure function of (seed, step), the same on any number of ranks."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from configs.errors import below
from search.training.batches import Batch
from search.training.devices import moved
from search.training.mixture_spec import MixtureSpec, allot
from tasks import IGNORED, Examples, Finite, Split, stream


class WeightedBatch(NamedTuple):
    """Inputs and targets [rows, time] int64, `IGNORED` where nothing is asked, and weights [rows, time] float32.

    `(cross_entropy * weights).sum()`, summed over ranks, is the loss of the mixture: the mean over the asked positions of each
    task, weighted by the shares of the tasks that ask for anything here. So gradients are summed over ranks, not averaged.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor


class Mixture:
    """`mixture[step]` is this rank's part of the step's batch: every rank knows the whole batch and takes rows `rank::n_ranks`.

    Synthetic tasks are drawn anew at every step; a finite one is gone through in epochs. Rows of shorter tasks are padded with
    zeros that are not asked, so that every batch has the same shape.

    It stands at the key `data` of a spec.

    Raises:
        ConfigError: if there are fewer rows than ranks, or a task's files cannot be read.
    """

    def __init__(self, spec: MixtureSpec, *, seed: int, device: torch.device, rank: int = 0, n_ranks: int = 1) -> None:
        if n_ranks > spec.batch_size:
            raise ConfigError(
                f"batch_size {spec.batch_size} over {n_ranks} workers leaves some without a row; give at least {n_ranks}"
            )
        self.tasks = {name: share.instance() for name, share in spec.tasks.items()}
        self.shares = spec.shares()
        self.n_rows = allot(self.shares, spec.batch_size)
        self.vocab_size = max(task.vocab_size for task in self.tasks.values())
        self.max_length = max(task.input_length for task in self.tasks.values())
        self.seed, self.device = seed, device
        self._mine = slice(rank, None, n_ranks)
        self._asks = -1, False
        self._finite: dict[str, Finite] = {name: task for name, task in self.tasks.items() if isinstance(task, Finite)}
        for name, finite in self._finite.items():
            _n_rows(name, finite, "train")  # what is wrong with its files comes to light here, not at the first step

    def __getitem__(self, step: int) -> WeightedBatch:
        n_rows = sum(self.n_rows.values())
        inputs = np.zeros((n_rows, self.max_length), dtype=np.int64)
        targets = np.full_like(inputs, IGNORED)
        weights = np.zeros(inputs.shape, dtype=np.float32)
        drawn = {name: self._drawn(name, step) for name in self.tasks}
        asked = {name: examples.targets != IGNORED for name, examples in drawn.items()}
        n_supervised = {name: np.count_nonzero(each) for name, each in asked.items()}
        share = 1.0 if all(n_supervised.values()) else sum(self.shares[name] for name, n in n_supervised.items() if n)
        first = 0
        for name, examples in drawn.items():
            place = slice(first, first + len(examples)), slice(self.tasks[name].input_length)
            inputs[place], targets[place] = examples.inputs, examples.targets
            if n_supervised[name]:
                weights[place] = asked[name] * np.float32(self.shares[name] / share / n_supervised[name])
            first += len(examples)
        self._asks = step, any(n_supervised.values())
        return WeightedBatch(*(moved(array[self._mine], self.device) for array in (inputs, targets, weights)))

    def asks_at(self, step: int) -> bool:
        """Whether the whole batch of a step, over all ranks, has a supervised position; free for the one that was drawn last."""
        if self._asks[0] != step:
            _ = self[step]
        return self._asks[1]

    def _drawn(self, name: str, step: int) -> Examples:
        n_rows = self.n_rows[name]
        if name in self._finite:
            return self._finite[name].rows("train", self.seed, step * n_rows, n_rows)
        return self.tasks[name].sample(stream("train", self.seed, step, name), n_rows, "train")

    def evaluation(self, n_batches: int, batch_size: int, split: Split = "validation") -> dict[str, list[Batch]]:
        """Batches of each task at the task's own length, the same on every rank and at every call.

        Raises:
            ConfigError: if a finite task has fewer instances: none is scored twice; or if those of a task ask for nothing.
        """
        n_rows = n_batches * batch_size
        batches = {}
        for name, task in self.tasks.items():
            if not isinstance(task, Finite):
                examples = task.sample(stream(split, self.seed, name), n_rows, split)
            elif n_rows > _n_rows(name, task, split):
                text = f"{n_batches} batches of {batch_size} need {n_rows} windows of '{name}', but its {split} split has"
                raise ConfigError(f"{text} {task.n_rows(split)}; give fewer, more text, or a shorter seq_len")
            else:
                examples = task.rows(split, self.seed, 0, n_rows)
            if not (examples.targets != IGNORED).any():
                text = f"none of the {n_rows} {split} instances has a supervised position"
                raise ConfigError(f"data.tasks.{name}: {text}: there is nothing to score; give more, or another task")
            inputs, targets = moved(examples.inputs, self.device), moved(examples.targets, self.device)
            batches[name] = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
        return batches

    def fingerprint(self, batches: Mapping[str, list[Batch]]) -> str:
        """Twelve hexadecimal digits of evaluation batches and of the shares that weigh their scores, for the score log."""
        digest = hashlib.sha256()
        for name, pairs in batches.items():
            digest.update(f"{name} {self.shares[name]!r}".encode())
            for tensor in (tensor for pair in pairs for tensor in pair):
                digest.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]


def _n_rows(name: str, task: Finite, split: Split) -> int:
    with below("data", "tasks", name, "task"):
        return task.n_rows(split)
