"""Memorization: the values of keys, learned by heart, never seen in the input."""

from dataclasses import dataclass

import numpy as np

from tasks.checks import check_integers, check_split
from tasks.task import IGNORED, Examples, Split, Task


@dataclass(frozen=True, kw_only=True)
class Memorization(Task):
    """Keys, each followed by an insert token, at which its value in a fixed map is asked. Poli et al. 2024, arXiv 2403.17844.

    Tokens: `(vocab_size - 1) // 2` keys, values (one is not used where `vocab_size` is even), the insert token. The map
    depends on `vocab_size` and `map_seed` alone; keys are drawn with replacement.
    """

    vocab_size: int = 256
    seq_len: int = 32
    map_seed: int = 12345

    def __post_init__(self) -> None:
        check_integers(minimum=3, vocab_size=self.vocab_size)
        check_integers(minimum=2, seq_len=self.seq_len)
        check_integers(minimum=0, map_seed=self.map_seed)
        if self.seq_len % 2:
            raise ValueError(f"seq_len must be even, a key and an insert token at a time; got {self.seq_len}")

    @property
    def n_keys(self) -> int:
        """Keys of the map."""
        return (self.vocab_size - 1) // 2

    @property
    def input_length(self) -> int:
        """All of `seq_len`."""
        return self.seq_len

    def key_values(self) -> tuple[np.ndarray, np.ndarray]:
        """The map: keys [n_keys] and their values [n_keys]."""
        rng = np.random.default_rng(self.map_seed)
        keys = np.arange(self.n_keys)
        values = np.arange(self.n_keys, self.vocab_size - 1)
        rng.shuffle(keys)
        rng.shuffle(values)
        return keys, values[: self.n_keys]

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; all splits alike."""
        check_split(split)
        keys, values = self.key_values()
        picks = rng.integers(self.n_keys, size=(n_examples, self.seq_len // 2))
        inputs = np.full((n_examples, self.seq_len), self.vocab_size - 1)
        targets = np.full_like(inputs, IGNORED)
        inputs[:, ::2] = keys[picks]
        targets[:, 1::2] = values[picks]
        return Examples(inputs=inputs, targets=targets)

    def ceiling(self, n_train: int) -> float:
        """The expected share of keys that `n_train` instances show; lucky guesses at the others are not counted."""
        return 1.0 - (1.0 - 1.0 / self.n_keys) ** (self.seq_len // 2 * n_train)
