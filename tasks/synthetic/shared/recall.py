"""Recall of single tokens, the sampler behind in-context and noisy in-context recall."""

from dataclasses import dataclass

import numpy as np

from tasks.checks import check_flags, check_integers, check_split
from tasks.synthetic.shared.rejection import Proposals, draw_valid
from tasks.task import IGNORED, Examples, Split, Task


@dataclass(frozen=True, kw_only=True)
class Recall(Task):
    """Key-value pairs, then a key that was shown: its value is asked.

    A sequence has `seq_len // 2` slots of two tokens. Each slot but the last shows a key, drawn anew, and the value that
    the sequence gives it (two keys may share a value), or two noise tokens; the last slot asks a distinct key that was shown.
    `train` asks the next token everywhere. Evaluation asks the values of the keys that were shown before, at the key; or
    with `multi_query=False` the last value alone, after a copy token.

    Tokens: keys, values, noise, then the copy token if there is one; half of what noise and copy token leave are keys.

    One slot, drawn from all, stays free of noise. Where that is the last slot, which has none anyway, all the others may be
    noise, with a chance of `frac_noise ** (seq_len // 2 - 1)`, and no key would be left to ask: such instances are drawn again.
    """

    vocab_size: int = 16
    seq_len: int = 128
    multi_query: bool = True

    def __post_init__(self) -> None:
        check_integers(minimum=1, vocab_size=self.vocab_size)
        check_integers(minimum=4, seq_len=self.seq_len)
        check_flags(multi_query=self.multi_query)
        if self.seq_len % 2:
            raise ValueError(f"seq_len must be even, a key and a value per slot; got {self.seq_len}")
        if self._n_symbols < 2:
            text = "no keys and values left: needs vocab_size - noise_vocab_size - (1 copy token without multi_query) >= 2"
            raise ValueError(f"{text}; got {self.vocab_size} - {self._n_noise} - {int(not self.multi_query)} = {self._n_symbols}")

    @property
    def _n_noise(self) -> int:
        return 0

    @property
    def _noise_chance(self) -> float:
        return 0.0

    @property
    def _n_symbols(self) -> int:
        return self.vocab_size - self._n_noise - (not self.multi_query)

    @property
    def input_length(self) -> int:
        """The last value is not shown: one less than `seq_len`, and one more for the copy token."""
        return self.seq_len - 1 + (not self.multi_query)

    @property
    def answers_stand_ahead(self) -> bool:
        """The values asked at keys come next; the last one does not."""
        return self.multi_query

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; evaluation asks less than training."""
        check_split(split)
        width = max(self.seq_len, self._n_symbols)
        return draw_valid(lambda n: self._batch(rng, n, is_training=split == "train"), n_examples, self.input_length, width=width)

    def _batch(self, rng: np.random.Generator, n: int, *, is_training: bool) -> Proposals:
        n_keys, n_slots = self._n_symbols // 2, self.seq_len // 2 - 1
        rows = np.arange(n)[:, None]
        keys = rng.integers(n_keys, size=(n, n_slots))
        values = rng.integers(n_keys, self._n_symbols, size=(n, n_keys))
        is_noise = self._draw_noise(rng, n, n_slots)
        first = _first_slots(np.where(is_noise, n_keys, keys), n_keys)
        query = _pick(rng, first < n_slots)

        tokens = np.empty((n, self.input_length + 1), dtype=np.int64)
        tokens[:, : 2 * n_slots : 2] = keys
        tokens[:, 1 : 2 * n_slots : 2] = values[rows, keys]
        if self._noise_chance:
            pairs = tokens[:, : 2 * n_slots].reshape(n, n_slots, 2)
            pairs[is_noise] = rng.integers(self._n_symbols, self._n_symbols + self._n_noise, size=(int(is_noise.sum()), 2))
        if not self.multi_query:
            tokens[:, -3] = self.vocab_size - 1
        tokens[:, -2] = query
        tokens[:, -1] = values[rows[:, 0], query]
        is_repeated = (first[rows, keys] < np.arange(n_slots)) & ~is_noise
        return tokens[:, :-1], self._targets(tokens, is_repeated, is_training=is_training), first.min(axis=1) < n_slots

    def _draw_noise(self, rng: np.random.Generator, n: int, n_slots: int) -> np.ndarray:
        if not self._noise_chance:
            return np.zeros((n, n_slots), dtype=bool)
        is_noise = rng.random((n, n_slots)) < self._noise_chance
        return is_noise & (np.arange(n_slots) != rng.integers(n_slots + 1, size=(n, 1)))

    def _targets(self, tokens: np.ndarray, is_repeated: np.ndarray, *, is_training: bool) -> np.ndarray:
        following = tokens[:, 1:]
        if is_training:
            return following
        targets = np.full_like(following, IGNORED)
        if self.multi_query:
            asked = following[:, : 2 * is_repeated.shape[1] : 2]
            targets[:, : 2 * is_repeated.shape[1] : 2] = np.where(is_repeated, asked, IGNORED)
        targets[:, -1] = following[:, -1]
        return targets


def _first_slots(keys: np.ndarray, n_keys: int) -> np.ndarray:
    """The slot [n, n_keys] that shows each key for the first time, or the number of slots; keys from `n_keys` on are left out."""
    n, n_slots = keys.shape
    first = np.full((n, n_keys + 1), n_slots)
    # Flat indices take the fast path of `at`.
    places = keys + np.arange(0, first.size, n_keys + 1)[:, None]
    np.minimum.at(first.reshape(-1), places.reshape(-1), np.tile(np.arange(n_slots), n))
    return first[:, :n_keys]


def _pick(rng: np.random.Generator, is_choice: np.ndarray) -> np.ndarray:
    """One of the choices of each row, all alike; 0 where a row has none."""
    n_choices = is_choice.sum(axis=1)
    wanted = rng.integers(np.maximum(n_choices, 1))
    return np.argmax(np.cumsum(is_choice, axis=1) == wanted[:, None] + 1, axis=1)
