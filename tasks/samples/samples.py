"""Samples: a fixed set of numbered rows, from a task or from arrays, that training goes through many times."""

import hashlib
import json
from functools import cached_property
from typing import Protocol, cast

import numpy as np

from configs import ConfigError
from configs.errors import below
from tasks.checks import check_integers, check_split
from tasks.dataset import draw
from tasks.objectives.shared.objective import Sequences
from tasks.permutation import permuted
from tasks.task import IGNORED, Split, Task
from tasks.text.text import Text


class Samples(Protocol):
    """The samples of a training and a validation split, each with a number within its split, from 0 on.

    Corruptions and caches of activations know a sample by its id. That of a training sample is its number; the ids of the
    validation split go on from there.
    """

    @property
    def vocab_size(self) -> int:
        """Tokens are below it."""
        ...

    @property
    def seq_len(self) -> int:
        """Positions of every sample."""
        ...

    @property
    def has_pads_before_tokens(self) -> bool:
        """Whether some sample, of either split, has them elsewhere than at its end."""
        ...

    def n_samples(self, split: Split) -> int:
        """As many as the split has."""
        ...

    def sequences(self, split: Split, numbers: np.ndarray) -> Sequences:
        """The samples with the numbers [n]; `attention_mask` is None where samples, whichever are asked for, have no pads."""
        ...

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of what the samples are."""
        ...


def taken(batch: Sequences, rows: np.ndarray) -> Sequences:
    """The samples of a batch at the places [n]."""
    attention_mask, targets = (None if array is None else array[rows] for array in (batch.attention_mask, batch.targets))
    return Sequences(tokens=batch.tokens[rows], sample_ids=batch.sample_ids[rows], attention_mask=attention_mask, targets=targets)


class ArraySamples:
    """Rows of tokens [n, time] that lie in memory; targets and attention_mask [n, time] as `Sequences` has them.

    Args:
        tokens: integers from 0 to `vocab_size - 1`.
        vocab_size: as above.
        attention_mask: False at pads; None if there are none.
        targets: for the objective `custom`.
        n_validation: so many rows at the end are the validation split; 0 takes all rows for either.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        vocab_size: int,
        attention_mask: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        n_validation: int = 0,
    ) -> None:
        check_integers(minimum=1, vocab_size=vocab_size)
        check_integers(minimum=0, n_validation=n_validation)
        self._rows = Sequences(tokens=tokens, sample_ids=np.arange(len(tokens)), attention_mask=attention_mask, targets=targets)
        if n_validation >= len(tokens):
            raise ValueError(f"n_validation must leave rows to train on: it must be below {len(tokens)}; got {n_validation}")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            text = f"they are from {tokens.min()} to {tokens.max()}"
            raise ValueError(f"tokens must be at least 0 and below vocab_size = {vocab_size}; {text}")
        self.vocab_size, self.seq_len = vocab_size, tokens.shape[1]
        self._n_validation = n_validation

    @cached_property
    def has_pads_before_tokens(self) -> bool:
        """As the contract says."""
        attention_mask = self._rows.attention_mask
        return attention_mask is not None and bool((attention_mask[:, 1:] & ~attention_mask[:, :-1]).any())

    def n_samples(self, split: Split) -> int:
        """As the contract says."""
        n_all, first = len(self._rows.tokens), self._first(split)
        return n_all - first if split == "validation" else n_all - self._n_validation

    def sequences(self, split: Split, numbers: np.ndarray) -> Sequences:
        """As the contract says."""
        return taken(self._rows, self._first(split) + numbers)

    def fingerprint(self) -> str:
        """As the contract says, of every element when it was first asked for."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.vocab_size} {self._n_validation}".encode())
        for array in (self._rows.tokens, self._rows.attention_mask, self._rows.targets):
            if array is not None:
                digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array, dtype=np.int64).data)
            digest.update(b"|")
        return digest.hexdigest()[:12]

    def _first(self, split: Split) -> int:
        is_held_out = _learned(split) == "validation" and self._n_validation
        return len(self._rows.tokens) - self._n_validation if is_held_out else 0


class TextSamples:
    """The windows of a text, or so many of a split: the first ones of an order drawn from the seed, so that more keep the others.

    Raises:
        ConfigError: where there are not that many.
    """

    has_pads_before_tokens = False

    def __init__(self, task: Text, *, seed: int, n_train: int | None = None, n_validation: int | None = None) -> None:
        self.vocab_size, self.seq_len = cast("int", task.vocab_size), task.seq_len  # null as an option alone
        self._task, self._seed = task, seed
        self._n_wanted: dict[Split, int | None] = {"train": n_train, "validation": n_validation}
        for split, n_wanted in self._n_wanted.items():
            if n_wanted is not None and not 1 <= n_wanted <= (n_rows := task.n_rows(split)):
                raise ConfigError(
                    f"n_{split}: {n_wanted} of the {n_rows} windows of the {split} split; give fewer, or null for all"
                )

    def n_samples(self, split: Split) -> int:
        """As the contract says."""
        n_wanted = self._n_wanted[_learned(split)]
        return self._task.n_rows(split) if n_wanted is None else n_wanted

    def sequences(self, split: Split, numbers: np.ndarray) -> Sequences:
        """As the contract says; the targets are the next tokens, that of the last position too."""
        chosen = numbers
        if self._n_wanted[_learned(split)] is not None:
            chosen = permuted(numbers, self._task.n_rows(split), "samples", split, self._seed)
        windows = self._task.windows(split, chosen)
        ids = numbers if split == "train" else self.n_samples("train") + numbers
        return Sequences(
            tokens=windows.inputs, sample_ids=ids, attention_mask=windows.targets != IGNORED, targets=windows.targets
        )

    def fingerprint(self) -> str:
        """As the contract says: of the content of the files, and of what is taken of it."""
        parts = [self._task.data_fingerprint(), self.seq_len, self.vocab_size, self._seed, self._n_wanted]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def task_samples(task: Task, *, seed: int, n_train: int | None, n_validation: int | None) -> Samples:
    """The windows of a text (all of them, without a number), or instances of any other task, drawn once by (seed, split).

    Raises:
        ConfigError: where there are not that many, or numbers are missing.
    """
    if isinstance(task, Text):
        with below("task"):  # what is wrong with its files comes to light here, not at the first step
            for split in ("train", "validation"):
                task.n_rows(split)
        return TextSamples(task, seed=seed, n_train=n_train, n_validation=n_validation)
    if n_train is None or n_validation is None:
        name = "n_train" if n_train is None else "n_validation"
        raise ConfigError(f"{name}: a number is needed: {type(task).__name__} draws instances without end, a text has all it has")
    train = draw(task, n_train, seed=seed, split="train")
    held_out = draw(task, n_validation, seed=seed, split="validation")
    return ArraySamples(
        np.concatenate([train.inputs, held_out.inputs]),
        vocab_size=task.vocab_size,
        targets=np.concatenate([train.targets, held_out.targets]),
        n_validation=n_validation,
    )


def _learned(split: Split) -> Split:
    check_split(split)
    if split == "test":
        raise ValueError("samples are of the splits train and validation; got 'test'")
    return split
