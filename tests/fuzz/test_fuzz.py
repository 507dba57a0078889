"""A short run of the fuzzer: odd input is refused in one message, or can be built; and every kind takes its turn."""

import pytest

from tests.fuzz.bases import bases, kinds
from tests.fuzz.run import mutations, odd_values


def kinds_in(tree):
    """Every kind that a tree names."""
    if isinstance(tree, dict):
        if isinstance(tree.get("kind"), str):
            yield tree["kind"]
        tree = list(tree.values())
    for inner in tree if isinstance(tree, list) else ():
        yield from kinds_in(inner)


def test_every_kind_is_somewhere_in_the_bases():
    found = {kind for _, tree in bases().values() for kind in kinds_in(tree)}
    assert {kind for _, kind in kinds()} - found <= {"custom"}  # whose targets come with a loader's batches


@pytest.mark.parametrize("make", [odd_values, mutations])
def test_odd_input_is_refused_or_can_be_built(make):
    assert [problem for problem, _ in make(40, seed=7) if problem] == []
