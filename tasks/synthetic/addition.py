"""Addition: the sum of two numbers, digit by digit."""

from dataclasses import dataclass

import numpy as np

from tasks.checks import check_integers, check_split
from tasks.task import IGNORED, Examples, Split, Task


@dataclass(frozen=True, kw_only=True)
class Addition(Task):
    """`a + b = sum` with the lowest digit first, the order in which carries go; every digit of the sum is asked.

    Lee et al. 2023, arXiv 2307.03381, who turn the sum around; here all three numbers are. `seq_len` holds two numbers of
    `seq_len // 3 - 1` digits each, leading zeros included, their sum of one more, and the two signs.

    Tokens: the digits to the base of `vocab_size - 2`, plus, equals.
    """

    vocab_size: int = 12
    seq_len: int = 24

    def __post_init__(self) -> None:
        check_integers(minimum=4, vocab_size=self.vocab_size)
        check_integers(minimum=6, seq_len=self.seq_len)
        if self.seq_len % 3:
            raise ValueError(f"seq_len must be a multiple of 3: two numbers of seq_len / 3 - 1 digits; got {self.seq_len}")

    @property
    def n_digits(self) -> int:
        """Digits of the numbers that are added."""
        return self.seq_len // 3 - 1

    @property
    def input_length(self) -> int:
        """The sum's last digit is not shown: one less than `seq_len`."""
        return self.seq_len - 1

    @property
    def answers_stand_ahead(self) -> bool:
        """The digits of the sum come next, but for the last."""
        return True

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; all splits alike."""
        check_split(split)
        n, base = self.n_digits, self.vocab_size - 2
        numbers = rng.integers(base, size=(n_examples, 2, n))
        sums = np.zeros((n_examples, n + 1), dtype=np.int64)
        sums[:, :n] = numbers.sum(axis=1)
        for place in range(n):
            sums[:, place + 1] += sums[:, place] // base
            sums[:, place] %= base
        tokens = np.empty((n_examples, self.seq_len), dtype=np.int64)
        tokens[:, :n], tokens[:, n] = numbers[:, 0], self.vocab_size - 2
        tokens[:, n + 1 : 2 * n + 1], tokens[:, 2 * n + 1] = numbers[:, 1], self.vocab_size - 1
        tokens[:, 2 * n + 2 :] = sums
        targets = np.full((n_examples, self.input_length), IGNORED)
        targets[:, 2 * n + 1 :] = sums
        return Examples(inputs=tokens[:, :-1].copy(), targets=targets)
