"""Tuples of distinct symbols against their enumeration."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from tasks.synthetic.shared.tuples import draw_tuples, first_equal, tuple_codes


@pytest.mark.parametrize(("n_symbols", "size"), [(1, 1), (4, 1), (4, 2), (5, 3), (4, 4)])
def test_all_tuples_are_drawn_equally_often(rng, n_symbols, size):
    everything = list(permutations(range(n_symbols), size))
    n_draws = 400 * len(everything)
    drawn = Counter(map(tuple, draw_tuples(rng, n_symbols, size, (n_draws // 2, 2)).reshape(-1, size).tolist()))
    assert set(drawn) == set(everything)
    statistic = sum((count - 400) ** 2 / 400 for count in drawn.values())
    freedom = len(everything) - 1
    assert abs(statistic - freedom) <= 4 * np.sqrt(2 * freedom)


def test_codes_are_equal_where_the_places_in_use_are_equal(rng):
    tuples = draw_tuples(rng, 5, 3, (2000,))
    sizes = rng.integers(1, 4, size=2000)
    codes = tuple_codes(tuples, sizes, 5)
    assert codes.max() < 6**3
    meanings = {
        (code, tuple(row[:size])) for code, row, size in zip(codes.tolist(), tuples.tolist(), sizes.tolist(), strict=True)
    }
    assert len(meanings) == len({code for code, _ in meanings}) == len({used for _, used in meanings}) == 5 + 20 + 60


@pytest.mark.parametrize("n_codes", [1, 7, 10**6, 2**55])
@pytest.mark.parametrize("n_columns", [1, 2, 31, 64])
def test_first_equal_finds_what_a_search_finds(rng, n_codes, n_columns):
    codes = rng.integers(n_codes, size=(50, n_columns))
    codes[:, n_columns // 2] = codes[:, 0]
    expected = [[row.index(code) for code in row] for row in codes.tolist()]
    np.testing.assert_array_equal(first_equal(codes), expected)
