"""Random placements within a budget."""

from collections.abc import Container, Sequence

import numpy as np

from models.spec.placement import Placement
from search.budget.budget import Budget
from search.budget.program import ConstraintRow

MOST_LISTED = 200_000
"""As many ways to share out the names are listed; beyond that they are walked through slot by slot."""

_TRIES = 200
"""So many known placements in a row, and no more are looked for."""


class Admitted:
    """The placements that a budget admits, to draw from.

    Slots to which the same applies form a group. If the admitted counts (how many slots of each group take each name) can be
    listed, a draw takes one of them, all alike likely, and puts the names of each group in a random order. Otherwise it goes
    through the slots in a random order and takes one of the names with which the rest can still be completed, all alike
    likely: an integer program a name, some hundred milliseconds for 48 layers, but never a placement outside.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        kinds = np.concatenate([budget.allowed, *(row.weights for row in budget.rows)], axis=1)
        _, self._first, inverse = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
        self._group = inverse.reshape(-1)
        self._counts = _admitted_counts(budget.allowed[self._first], np.bincount(self._group), budget.rows, self._first)

    def draw(self, random: np.random.Generator) -> Placement:
        """One placement."""
        code = self._walked(random) if self._counts is None else self._listed(self._counts, random)
        return self._budget.coding.decode(code[None])[0]

    def draw_new(self, random: np.random.Generator, n: int, seen: Container[Placement] = ()) -> list[Placement]:
        """`n` different placements that are not `seen`; fewer, if that many draws in a row bring nothing new: see `_TRIES`."""
        drawn: dict[Placement, None] = {}
        n_known = 0
        while len(drawn) < n and n_known < _TRIES:
            placement = self.draw(random)
            is_known = placement in drawn or placement in seen
            n_known = n_known + 1 if is_known else 0
            if not is_known:
                drawn[placement] = None
        return list(drawn)

    def shares(self) -> list[dict[str, float]] | None:
        """How often each slot has each name, if the counts are listed."""
        if self._counts is None:
            return None
        shares = (self._counts.mean(0) / np.bincount(self._group)[:, None])[self._group]
        coding = self._budget.coding
        return [
            {name: float(row[coding.number[name]]) for name in slot.names} for slot, row in zip(coding.slots, shares, strict=True)
        ]

    def _listed(self, listed: np.ndarray, random: np.random.Generator) -> np.ndarray:
        code = np.empty(len(self._group), dtype=np.int16)
        for group, counts in enumerate(listed[random.integers(len(listed))]):
            code[self._group == group] = random.permutation(np.repeat(np.arange(len(counts)), counts))
        return code

    def _walked(self, random: np.random.Generator) -> np.ndarray:
        allowed = self._budget.allowed.copy()
        found = self._budget.solve()
        for slot in random.permutation(len(allowed)):
            for name in random.permutation(np.flatnonzero(allowed[slot])):
                narrowed = allowed.copy()
                narrowed[slot] = np.arange(allowed.shape[1]) == name
                completed = found if found is not None and found[slot] == name else self._budget.solve(allowed=narrowed)
                if completed is not None:
                    allowed, found = narrowed, completed
                    break
        assert found is not None, "check() passed"
        return found


def _admitted_counts(
    allowed: np.ndarray, sizes: np.ndarray, rows: Sequence[ConstraintRow], first: np.ndarray
) -> np.ndarray | None:
    """All admitted counts [n, n_groups, n_names], or None where there are too many ways to look through."""
    listed = np.zeros((1, 0, allowed.shape[1]), dtype=int)
    for names, size in zip(allowed, sizes, strict=True):
        n_ways = _n_compositions(int(size), int(names.sum()))
        if n_ways * len(listed) > MOST_LISTED:
            return None
        ways = np.zeros((n_ways, 1, len(names)), dtype=int)
        ways[:, 0, names] = _compositions(int(size), int(names.sum()))
        listed = np.concatenate([np.repeat(listed, n_ways, axis=0), np.tile(ways, (len(listed), 1, 1))], axis=1)
    admitted = np.ones(len(listed), dtype=bool)
    for row in rows:
        admitted &= row.holds((listed * row.weights[first]).sum((1, 2)))
    return listed[admitted]


def _n_compositions(total: int, n_parts: int) -> int:
    return int(np.prod([(total + part) / part for part in range(1, n_parts)]).round())


def _compositions(total: int, n_parts: int) -> np.ndarray:
    """All ways to write `total` as a sum of `n_parts` numbers in order: [n, n_parts]."""
    if n_parts == 1:
        return np.array([[total]])
    parts = [(first, _compositions(total - first, n_parts - 1)) for first in range(total + 1)]
    return np.concatenate([np.concatenate([np.full((len(rest), 1), first), rest], axis=1) for first, rest in parts])
