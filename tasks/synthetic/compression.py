"""Compression: a whole sequence out of the state after its last token."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.checks import check_integers, check_split
from tasks.task import Examples, Split, Task


@dataclass(frozen=True, kw_only=True)
class Compression(Task):
    """Random tokens and a compression token, all of them asked at their own position. Poli et al. 2024, arXiv 2403.17844.

    Tokens: data, then the compression token, the last of the vocabulary and of every sequence.
    """

    vocab_size: int = 16
    seq_len: int = 32

    def __post_init__(self) -> None:
        check_integers(minimum=2, vocab_size=self.vocab_size, seq_len=self.seq_len)

    @property
    def input_length(self) -> int:
        """All of `seq_len`."""
        return self.seq_len

    @property
    def read_out(self) -> Literal["language_model", "autoencoder"]:
        """The last position has to give back every one."""
        return "autoencoder"

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; all splits alike."""
        check_split(split)
        inputs = np.full((n_examples, self.seq_len), self.vocab_size - 1)
        inputs[:, :-1] = rng.integers(self.vocab_size - 1, size=(n_examples, self.seq_len - 1))
        return Examples(inputs=inputs, targets=inputs.copy())
