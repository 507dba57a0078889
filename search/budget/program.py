"""The best placement under linear limits, as an integer program (HiGHS)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MARGIN = 4e-6
"""HiGHS keeps rows to 1e-6; a row that was not kept exactly is tightened by this much and solved again."""


class ConstraintRow(NamedTuple):
    """A linear limit: what the choices add up to lies between `low` and `high`. `weights`: [n_slots, n_names]."""

    weights: np.ndarray
    low: float
    high: float

    def total(self, codes: np.ndarray) -> np.ndarray:
        """What the choices of codes [..., n_slots] add up to."""
        return self.weights[np.arange(len(self.weights)), codes].sum(-1)

    def admits(self, codes: np.ndarray) -> np.ndarray:
        """Whether codes [..., n_slots] keep it."""
        return self.holds(self.total(codes))

    def holds(self, total: np.ndarray) -> np.ndarray:
        """Whether totals lie between the bounds, to the rounding of a sum."""
        return (total >= self.low - 1e-12 * abs(self.low)) & (total <= self.high + 1e-12 * abs(self.high))


def solve(objective: np.ndarray, allowed: np.ndarray, rows: Sequence[ConstraintRow]) -> np.ndarray | None:
    """The code [n_slots] with the greatest sum of `objective` [n_slots, n_names] among those allowed, or None.

    Slots to which all the same applies are one integer variable a name, a count: most budgets become programs of a few
    variables. Rows of whole numbers are divided by what they have in common, which leaves no room for the solver's tolerance.
    """
    if not allowed.any(1).all():
        return None
    features = np.concatenate([np.where(allowed, objective, 0), allowed, *(row.weights for row in rows)], axis=1)
    _, first, group = np.unique(features, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    scaled = [_scale(row, allowed) for row in rows]
    for _ in range(2):
        counts = _counts(objective[first], allowed[first], [row._replace(weights=row.weights[first]) for row in scaled], group)
        if counts is None:
            return None
        codes = _laid_out(counts, group)
        broken = [not row.admits(codes) for row in rows]
        if not any(broken):
            return codes
        scaled = [_tighter(row) if is_broken else row for row, is_broken in zip(scaled, broken, strict=True)]
    return None


def _counts(objective: np.ndarray, allowed: np.ndarray, rows: Sequence[ConstraintRow], group: np.ndarray) -> np.ndarray | None:
    """How many slots of each group take each name: [n_groups, n_names]."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - most budgets need no program, and no wait for it

    sizes = np.bincount(group)
    each_slot_once = np.kron(np.eye(len(sizes)), np.ones(allowed.shape[1]))
    matrix = np.concatenate([each_slot_once, *(row.weights.reshape(1, -1) for row in rows)])
    low = np.array([*sizes, *(row.low for row in rows)], dtype=float)
    high = np.array([*sizes, *(row.high for row in rows)], dtype=float)
    gains = np.where(allowed, objective, 0).reshape(-1)
    scale = np.abs(gains).max() or 1.0
    result = milp(
        -1e3 * gains / scale,  # HiGHS stops at an absolute gap of 1e-6
        integrality=np.ones(len(gains)),
        bounds=Bounds(0, (allowed * sizes[:, None]).reshape(-1).astype(float)),
        constraints=LinearConstraint(matrix, low, high),
        options={"mip_rel_gap": 0.0},
    )
    return None if result.x is None else np.rint(result.x).astype(int).reshape(allowed.shape)


def _laid_out(counts: np.ndarray, group: np.ndarray) -> np.ndarray:
    codes = np.empty(len(group), dtype=np.int16)
    for index, count in enumerate(counts):
        codes[group == index] = np.repeat(np.arange(len(count)), count)
    return codes


def _scale(row: ConstraintRow, allowed: np.ndarray) -> ConstraintRow:
    weights = np.where(allowed, row.weights, 0)
    largest = float(np.abs(weights).max()) or 1.0
    if largest >= 2**53 or np.any(weights != np.rint(weights)):
        return ConstraintRow(weights / largest, row.low / largest, row.high / largest)
    divisor = float(np.gcd.reduce(weights.astype(np.int64), axis=None)) or 1.0
    if largest / divisor > 1e6:
        return ConstraintRow(weights / largest, row.low / largest, row.high / largest)
    # Half-way between two sums that can be is far from both.
    return ConstraintRow(weights / divisor, np.ceil(row.low / divisor - 1e-9) - 0.5, np.floor(row.high / divisor + 1e-9) + 0.5)


def _tighter(row: ConstraintRow) -> ConstraintRow:
    return ConstraintRow(row.weights, row.low + MARGIN, row.high - MARGIN)
