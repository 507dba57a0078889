"""Selective copying: the data tokens of a sequence in their order, without the blanks between them."""

from dataclasses import dataclass

import numpy as np

from tasks.checks import check_integers, check_split
from tasks.task import IGNORED, Examples, Split, Task


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Data tokens among blanks, a copy token, and blanks at which the data are asked. Poli et al. 2024, arXiv 2403.17844.

    Tokens: data, blank, copy. Each of the `seq_len - 2 * n_tokens_to_copy - 1` blanks stands before a data token drawn from
    all alike, so the last data token is always next to the copy token.
    """

    vocab_size: int = 16
    seq_len: int = 256
    n_tokens_to_copy: int = 16

    def __post_init__(self) -> None:
        check_integers(minimum=3, vocab_size=self.vocab_size)
        check_integers(minimum=1, seq_len=self.seq_len, n_tokens_to_copy=self.n_tokens_to_copy)
        if self.seq_len <= 2 * self.n_tokens_to_copy + 1:
            text = "the sequence is too short for what must be copied: needs seq_len > 2 * n_tokens_to_copy + 1"
            raise ValueError(f"{text}; got {self.seq_len} <= 2 * {self.n_tokens_to_copy} + 1")

    @property
    def input_length(self) -> int:
        """All of `seq_len`."""
        return self.seq_len

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; all splits alike."""
        check_split(split)
        n_data = self.n_tokens_to_copy
        n_blanks = self.seq_len - 2 * n_data - 1
        data = rng.integers(self.vocab_size - 2, size=(n_examples, n_data))
        blanks_before = rng.multinomial(n_blanks, np.full(n_data, 1 / n_data), size=n_examples)
        inputs = np.full((n_examples, self.seq_len), self.vocab_size - 2)
        np.put_along_axis(inputs, np.cumsum(blanks_before, axis=1) + np.arange(n_data), data, axis=1)
        inputs[:, -n_data - 1] = self.vocab_size - 1
        targets = np.full_like(inputs, IGNORED)
        targets[:, -n_data:] = data
        return Examples(inputs=inputs, targets=targets)
