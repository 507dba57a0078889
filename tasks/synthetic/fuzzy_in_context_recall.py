"""Fuzzy in-context recall: keys and values are tuples of several tokens, of varying size."""

import math
from dataclasses import dataclass

import numpy as np

from tasks.checks import check_flags, check_integers, check_noise, check_split
from tasks.synthetic.shared.pairs import Pairs, Slots, fill_slots, write
from tasks.synthetic.shared.rejection import Proposals, draw_valid
from tasks.synthetic.shared.tuples import draw_tuples, first_equal, tuple_codes
from tasks.task import IGNORED, Examples, Split, Task


@dataclass(frozen=True, kw_only=True)
class FuzzyInContextRecall(Task):
    """Key-value pairs of 1 to `k_motif_size` and 1 to `v_motif_size` distinct tokens. Poli et al. 2024, arXiv 2403.17844.

    A probe is drawn first, and shown at the first slot after a random position, unless its key came up by itself; the last
    slot asks it. The position may lie behind the last slot: about 2 % of the probes are never shown at 128 tokens, and cannot
    be answered, unless `probe_is_shown` draws such instances again. With a chance of `frac_noise` a slot is noise.

    `train` draws all key sizes and asks the next token everywhere. Evaluation draws keys of `k_motif_size` tokens alone, and
    asks every token of the values whose keys were shown before; with `multi_query=False` of the last value alone, after a copy
    token.

    Tokens: keys, values, noise, pad, then the copy token if there is one. Sequences are padded on the left.
    """

    vocab_size: int = 16
    seq_len: int = 128
    k_motif_size: int = 3
    v_motif_size: int = 3
    noise_vocab_size: int = 0
    frac_noise: float = 0.0
    multi_query: bool = True
    probe_is_shown: bool = False

    def __post_init__(self) -> None:
        check_integers(minimum=1, vocab_size=self.vocab_size, seq_len=self.seq_len)
        check_integers(minimum=1, k_motif_size=self.k_motif_size, v_motif_size=self.v_motif_size)
        check_integers(minimum=0, noise_vocab_size=self.noise_vocab_size)
        check_flags(multi_query=self.multi_query, probe_is_shown=self.probe_is_shown)
        check_noise(frac_noise=self.frac_noise, noise_vocab_size=self.noise_vocab_size)
        n_values = self._n_symbols - self._n_keys
        if self.k_motif_size > self._n_keys or self.v_motif_size > n_values:
            left = f"{self.vocab_size} - {self.noise_vocab_size} - {1 if self.multi_query else 2}"
            text = "keys and values have distinct tokens: k_motif_size and v_motif_size must not exceed the key and value tokens,"
            text += " the halves of vocab_size - noise_vocab_size - (1 pad token, 2 special tokens without multi_query)"
            raise ValueError(f"{text}; got {self.k_motif_size}, {self.v_motif_size} > {self._n_keys}, {n_values} out of {left}")
        if self.seq_len <= 2 * self._pair_size:
            text = "no room for a pair and the query: needs seq_len > 2 * (k_motif_size + v_motif_size)"
            raise ValueError(f"{text}; got {self.seq_len} <= 2 * ({self.k_motif_size} + {self.v_motif_size})")
        if (n_codes := (self._n_keys + 1) ** self.k_motif_size * self.seq_len) >= 2**60:
            text = "too many keys to be told apart: needs (key tokens + 1) ** k_motif_size * seq_len < 2 ** 60"
            raise ValueError(f"{text}; got {self._n_keys + 1} ** {self.k_motif_size} * {self.seq_len} = {n_codes}")

    @property
    def _n_symbols(self) -> int:
        return self.vocab_size - self.noise_vocab_size - (1 if self.multi_query else 2)

    @property
    def _n_keys(self) -> int:
        return self._n_symbols // 2

    @property
    def _pair_size(self) -> int:
        return self.k_motif_size + self.v_motif_size

    @property
    def input_length(self) -> int:
        """All of `seq_len`, pads included."""
        return self.seq_len

    @property
    def answers_stand_ahead(self) -> bool:
        """The tokens of values come next, but for the last token of the last one."""
        return self.multi_query or self.v_motif_size > 1

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; evaluation has longer keys and asks less than training."""
        check_split(split)
        is_training = split == "train"
        return draw_valid(lambda n: self._batch(rng, n, is_training=is_training), n_examples, self.seq_len, width=self.seq_len)

    def _batch(self, rng: np.random.Generator, n: int, *, is_training: bool) -> Proposals:
        pairs = self._draw_pairs(rng, n, is_training=is_training)
        probe_size = (pairs.key_sizes + pairs.value_sizes)[:, :1]
        probe_start = rng.integers(self.seq_len - 2 * probe_size)
        slots = fill_slots(pairs, probe_start, self.seq_len - probe_size - self._pair_size)
        is_answered = (slots.is_there & (slots.pairs == 0)).any(axis=1)
        tokens, is_supervised = write(
            pairs, self._with_query(slots), self.seq_len + 1, pad=self._n_symbols + self.noise_vocab_size
        )
        if not self.multi_query:
            # There are two pads at least: one makes room.
            place = np.arange(self.seq_len + 1) - (self.seq_len - probe_size)
            tokens = np.where(place < 0, np.roll(tokens, -1, axis=1), np.where(place == 0, self.vocab_size - 1, tokens))
        targets = tokens[:, 1:] if is_training else np.where(is_supervised, tokens, IGNORED)[:, 1:]
        return tokens[:, :-1], targets, is_answered | (not self.probe_is_shown)

    def _draw_pairs(self, rng: np.random.Generator, n: int, *, is_training: bool) -> Pairs:
        shortest_key = 1 if is_training else self.k_motif_size
        longest_end = self.seq_len - shortest_key - 1 - self._pair_size
        shape = (n, 1 + math.ceil(longest_end / (shortest_key + 1)))
        key_sizes = rng.integers(shortest_key, self.k_motif_size + 1, size=shape)
        value_sizes = rng.integers(1, self.v_motif_size + 1, size=shape)
        keys = draw_tuples(rng, self._n_keys, self.k_motif_size, shape)
        values = self._n_keys + draw_tuples(rng, self._n_symbols - self._n_keys, self.v_motif_size, shape)
        codes = tuple_codes(keys, key_sizes, self._n_keys)
        if self.frac_noise:
            is_noise = rng.random(shape) < self.frac_noise
            is_noise[:, 0] = False
            codes = np.where(is_noise, (self._n_keys + 1) ** self.k_motif_size + np.arange(shape[1]), codes)
            for part in (keys, values):
                size = (int(is_noise.sum()), part.shape[-1])
                part[is_noise] = rng.integers(self._n_symbols, self._n_symbols + self.noise_vocab_size, size=size)
        return Pairs(keys, values, key_sizes, value_sizes, first_equal(codes))

    def _with_query(self, slots: Slots) -> Slots:
        one = np.ones_like(slots.is_there[:, :1])
        return Slots(
            pairs=np.append(slots.pairs, np.zeros_like(slots.pairs[:, :1]), axis=1),
            is_there=np.append(slots.is_there, one, axis=1),
            is_repeated=np.append(slots.is_repeated & self.multi_query, one, axis=1),
        )
