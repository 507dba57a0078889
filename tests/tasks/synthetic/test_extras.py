"""The tasks beside the suite, against the same thing said slowly."""

from itertools import permutations

import numpy as np
import pytest

from tasks import IGNORED, TASKS
from tasks.synthetic.state_tracking import multiplication_table

SPLITS = ("train", "validation", "test")
SIGN = {element: (-1) ** sum(a > b for i, b in enumerate(element) for a in element[:i]) for element in permutations(range(5))}
ELEMENTS = {"S5": list(SIGN), "A5": [element for element, sign in SIGN.items() if sign == 1]}


@pytest.mark.parametrize("group", ["A5", "S5"])
@pytest.mark.parametrize("split", SPLITS)
def test_state_tracking_moves_five_things_about(rng, group, split):
    elements = ELEMENTS[group]
    task = TASKS["state_tracking"](group=group, vocab_size=len(elements), seq_len=9)
    examples = task.sample(rng, 50, split)
    for inputs, targets in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        places = [0, 1, 2, 3, 4]
        for token, target in zip(inputs, targets, strict=True):
            places = [elements[token][place] for place in places]
            assert elements[target] == tuple(places)


def test_state_tracking_adds_modulo_60(rng):
    examples = TASKS["state_tracking"](group="Z60").sample(rng, 200)
    np.testing.assert_array_equal(examples.targets, examples.inputs.cumsum(axis=1) % 60)
    assert set(examples.inputs.ravel()) == set(range(60))


@pytest.mark.parametrize(("group", "n_elements", "is_abelian"), [("A5", 60, False), ("S5", 120, False), ("Z60", 60, True)])
def test_groups_are_groups(group, n_elements, is_abelian):
    table, everything = multiplication_table(group), np.arange(n_elements)
    np.testing.assert_array_equal(table[0], everything)
    np.testing.assert_array_equal(table[:, 0], everything)
    for side in (table, table.T):
        np.testing.assert_array_equal(np.sort(side, axis=1), np.broadcast_to(everything, side.shape))
    np.testing.assert_array_equal(table[table], table[everything[:, None, None], table])  # (a b) c = a (b c)
    assert (table == table.T).all() == is_abelian


@pytest.mark.parametrize("depth", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("split", SPLITS)
def test_the_needle_lies_where_it_should(rng, split, depth):
    task = TASKS["needle"](vocab_size=10, seq_len=43, depth=depth)
    examples = task.sample(rng, 2000, split)
    found = []
    for inputs, targets in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        (place,) = [index for index, token in enumerate(inputs[:-1]) if token < 5]
        assert inputs[place] == inputs[-1]
        assert targets == [IGNORED] * 42 + [inputs[place + 1]]
        found.append(place)
    expected = range(41) if split != "test" or depth is None else [round(40 * depth)]
    assert set(found) == set(expected)
    assert set(examples.targets[:, -1]) == set(range(5, 10))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_depth_of_the_test_changes_nothing_that_a_model_is_trained_or_picked_on(split):
    plain, deep = (TASKS["needle"](depth=depth).sample(np.random.default_rng(3), 50, split) for depth in (None, 0.5))
    np.testing.assert_array_equal(plain.inputs, deep.inputs)
    np.testing.assert_array_equal(plain.targets, deep.targets)


@pytest.mark.parametrize(("vocab_size", "seq_len"), [(12, 24), (4, 30), (7, 6)])
@pytest.mark.parametrize("split", SPLITS)
def test_addition_is_addition(rng, split, vocab_size, seq_len):
    task = TASKS["addition"](vocab_size=vocab_size, seq_len=seq_len)
    n, base = task.n_digits, vocab_size - 2
    carries = 0
    for inputs, targets in zip(*(array.tolist() for array in vars(task.sample(rng, 300, split)).values()), strict=True):
        asked = targets[2 * n + 1 :]
        assert targets[: 2 * n + 1] == [IGNORED] * (2 * n + 1)
        assert (inputs[n], inputs[2 * n + 1]) == (base, base + 1)
        assert inputs[2 * n + 2 :] == asked[:-1]
        first, second, total = (
            sum(digit * base**place for place, digit in enumerate(digits))
            for digits in (inputs[:n], inputs[n + 1 : 2 * n + 1], asked)
        )
        assert first + second == total
        carries += asked[-1]
    assert carries
