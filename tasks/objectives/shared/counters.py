"""Random numbers by counter: a number for each sample and position, whoever asks, in whatever order."""

import numpy as np

from tasks.permutation import mixed
from tasks.rng import stream

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2 ** 64 over the golden ratio, by which splitmix64 counts (Steele, Lea and Flood 2014)."""


def uniform(sample_ids: np.ndarray, length: int, *key: int | str) -> np.ndarray:
    """Numbers in [0, 1) for samples [n] and positions: [n, length], a pure function of (key, sample, position).

    Each sample has its own stream of splitmix64, which starts at a hash of the key and the sample.
    """
    first, second = stream("objectives", *key).integers(2**64, size=2, dtype=np.uint64)
    starts = mixed(mixed(sample_ids.astype(np.uint64) + first) ^ second)
    bits = mixed(starts[:, None] + np.arange(1, length + 1, dtype=np.uint64) * GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53
