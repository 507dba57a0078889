"""The contract of tasks: parameters in, instances out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

Split = Literal["train", "validation", "test"]

IGNORED = -100
"""The target of positions that are not asked; torch's cross entropy ignores the same value."""


@dataclass(frozen=True)
class Examples:
    """Instances of a task: inputs [n, time] int64 and targets [n, time] int64, `IGNORED` where nothing is asked."""

    inputs: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is learned. A kind is one file `tasks/synthetic/<kind>.py` with one frozen dataclass.

    Its fields are the options, all with defaults (the baseline of the MAD suite, where it belongs to it); `__post_init__`
    raises a ValueError that names the inequality that fails. `sample` is a pure function of the generator's state,
    vectorised over instances, and draws `train` and evaluation instances by the same rules unless the task says otherwise.
    """

    vocab_size: int
    seq_len: int

    @abstractmethod
    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """Draw instances: inputs and targets [n_examples, time].

        `validation` and `test` follow the same distribution, but for options that say they are of the test alone.
        """

    @property
    @abstractmethod
    def input_length(self) -> int:
        """Positions of an instance as the model sees it, the `time` of what `sample` returns."""

    @property
    def read_out(self) -> Literal["language_model", "autoencoder"]:
        """The head a rack needs for this task."""
        return "language_model"

    @property
    def answers_stand_ahead(self) -> bool:
        """Whether evaluation asks what later positions of the input show: a model that looks ahead just copies it."""
        return False

    def ceiling(self, n_train: int) -> float:  # noqa: ARG002 - for tasks with more to learn than a rule
        """The best accuracy that is reachable in expectation after seeing `n_train` instances."""
        return 1.0

    def data_fingerprint(self) -> str | None:
        """What the instances depend on beside the options: the content of files, as hexadecimal digits."""
        return None


@runtime_checkable
class Finite(Protocol):
    """A task with a limited number of instances, which can be gone through in epochs."""

    def n_rows(self, split: Split) -> int:
        """Instances of a split, the length of an epoch."""
        ...

    def rows(self, split: Split, seed: int, first: int, n_examples: int) -> Examples:
        """Instances [first, first + n_examples) of the endless row of epochs, each in an order drawn from (seed, epoch)."""
        ...
