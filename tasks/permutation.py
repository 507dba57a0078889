"""A pseudo-random permutation of n numbers, computed position by position in O(1) memory: the order of an epoch."""

from functools import lru_cache

import numpy as np

from tasks.rng import stream

N_ROUNDS = 8
N_KEPT = 2**12
"""Positions that are permuted together, and kept for the batches that come next: for a few at a time it is mostly overhead."""


def permuted_run(first: int, n_positions: int, n: int, *key: int | str) -> np.ndarray:
    """What `permuted` gives for the positions [first, first + n_positions), for callers that go through them in order."""
    last = first + n_positions
    pieces = []
    for number in range(first // N_KEPT, -(-last // N_KEPT)):
        begin = number * N_KEPT
        pieces.append(_kept(number, n, *key)[max(first - begin, 0) : last - begin])
    return np.concatenate(pieces)


@lru_cache(maxsize=64)
def _kept(number: int, n: int, *key: int | str) -> np.ndarray:
    return permuted(np.arange(number * N_KEPT, min((number + 1) * N_KEPT, n)), n, *key)


def permuted(positions: np.ndarray, n: int, *key: int | str) -> np.ndarray:
    """Where a permutation of `n` numbers, one for each key, sends the positions [m] (each below `n`).

    A Feistel network permutes the numbers below a power of four that is at least `n`; what it sends beyond `n` is sent on
    until it falls below (Black and Rogaway 2002, "cycle walking", at most four rounds in expectation).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    keys = stream("order", *key).integers(2**64, size=N_ROUNDS, dtype=np.uint64)
    numbers = positions.astype(np.uint64)
    outside = np.arange(len(numbers))
    while len(outside):
        numbers[outside] = _feistel(numbers[outside], half, keys)
        outside = outside[numbers[outside] >= n]
    return numbers.astype(np.int64)


def _feistel(numbers: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (mixed(right + key) & mask)
    return left << half | right


def mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the number."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
