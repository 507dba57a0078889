"""Tuples of distinct symbols, many at a time: drawn directly, told apart by integer codes."""

import numpy as np


def draw_tuples(rng: np.random.Generator, n_symbols: int, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Tuples [*shape, size] of distinct symbols below `n_symbols`, all equally likely; so are their first places alone.

    The digits of a Lehmer code, drawn and decoded: a digit counts the symbols that no earlier place has taken.
    """
    tuples = np.stack([rng.integers(n_symbols - place, size=shape) for place in range(size)], axis=-1)
    for place in reversed(range(size - 1)):
        later = tuples[..., place + 1 :]
        later += later >= tuples[..., place, None]
    return tuples


def tuple_codes(tuples: np.ndarray, sizes: np.ndarray, n_symbols: int) -> np.ndarray:
    """Integers [*shape] below `(n_symbols + 1) ** size`, equal where the first `sizes` [*shape] places are equal."""
    codes = np.zeros_like(sizes)
    for place in range(tuples.shape[-1]):
        codes *= n_symbols + 1
        codes += (tuples[..., place] + 1) * (place < sizes)
    return codes


def first_equal(codes: np.ndarray) -> np.ndarray:
    """For each code of a row [n, m] (each below `2**62 / m`), the column where the row has it for the first time [n, m]."""
    columns = np.arange(codes.shape[1])
    shift = codes.shape[1].bit_length()
    ordered = np.sort(codes << shift | columns, axis=1)
    is_new = np.diff(ordered >> shift, axis=1, prepend=-1) != 0
    ordered &= (1 << shift) - 1
    first = np.empty_like(codes)
    run_starts = np.maximum.accumulate(np.where(is_new, columns, 0), axis=1)
    np.put_along_axis(first, ordered, np.take_along_axis(ordered, run_starts, axis=1), axis=1)
    return first
