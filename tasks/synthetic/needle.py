"""Needle: one key and its value in a haystack, asked for at the end."""

from dataclasses import dataclass

import numpy as np

from tasks.checks import check_integers, check_split
from tasks.task import IGNORED, Examples, Split, Task


@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """Noise with a key and its value somewhere in it, then the key again, at which the value is asked.

    The test of Kamradt (2023, "needle in a haystack") and, with key and value, of Hsieh et al. 2024, arXiv 2404.06654 (RULER).
    `depth` is where the test puts the needle: 0 at the start, 1 right before the question, null anywhere. Training and validation
    put it anywhere. Each depth of a scan is a trial of its own, trained anew; what it is trained on, and in mode `clean` picked
    by, is the same at every depth. (Mode `mad` stops and picks on the test split, so at the depth.)

    Tokens: `vocab_size // 2` keys, then values. Noise is made of values, so only the key before it tells the right one.
    """

    vocab_size: int = 32
    seq_len: int = 128
    depth: float | None = None

    def __post_init__(self) -> None:
        check_integers(minimum=3, vocab_size=self.vocab_size, seq_len=self.seq_len)
        is_number = isinstance(self.depth, int | float) and not isinstance(self.depth, bool)
        if self.depth is not None and not (is_number and 0 <= self.depth <= 1):
            raise ValueError(f"depth must be a number with 0 <= depth <= 1, or null; got {self.depth!r}")

    @property
    def input_length(self) -> int:
        """All of `seq_len`."""
        return self.seq_len

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; `depth` is the test's alone."""
        check_split(split)
        n_keys, last = self.vocab_size // 2, self.seq_len - 3
        keys = rng.integers(n_keys, size=n_examples)
        places = rng.integers(last + 1, size=n_examples)
        if self.depth is not None and split == "test":
            places[:] = round(self.depth * last)
        inputs = rng.integers(n_keys, self.vocab_size, size=(n_examples, self.seq_len))
        rows = np.arange(n_examples)
        inputs[rows, places] = inputs[:, -1] = keys
        targets = np.full_like(inputs, IGNORED)
        targets[:, -1] = inputs[rows, places + 1]
        return Examples(inputs=inputs, targets=targets)
