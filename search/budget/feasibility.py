"""Whether limits can be met together; and if not, which one cannot, and what is nearest to it."""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR

import numpy as np

from search.budget.limits import Limit, number_text
from search.budget.program import ConstraintRow, solve


def impossible(limits: Sequence[Limit], allowed: np.ndarray) -> str | None:
    """None if some choice of `allowed` [n_slots, n_names] keeps all limits, else why none does.

    What is named is a limit that cannot be met by itself, or else one that cannot be met beside the others.
    """
    for limit in limits:
        if limit.is_cost and limit.high <= 0:
            return _of_nothing(limit, allowed)
    if _holds(limits, allowed):
        return None
    for limit in limits:
        if not _holds([limit], allowed):
            return _nearest(limit, [], allowed)
    for limit in limits:
        others = [other for other in limits if other is not limit]
        if _holds(others, allowed):
            return _nearest(limit, others, allowed)
    met: list[Limit] = []
    for limit in limits:
        if not _holds([*met, limit], allowed):
            return _nearest(limit, met, allowed)
        met.append(limit)
    raise AssertionError("the limits hold after all")


def _of_nothing(limit: Limit, allowed: np.ndarray) -> str:
    """A cost of zero is refused even where it can be had: it is a mistake, or a way to forbid mixers without saying so."""
    smallest = limit.weights[limit.weights > 0].min(initial=math.inf)
    least = _extreme(limit, [], allowed, sign=-1, low=smallest / 2)
    if least is None:
        return f"{limit.text()} cannot be a limit: no placement of this space has any"
    if _extreme(limit, [], allowed, sign=-1) == 0:
        nearest = number_text(least, ROUND_CEILING)
        return (
            f"{limit.text()} cannot be a limit: the nearest that can is {nearest}; to go without, allow 0 layers of those mixers"
        )
    return f"{limit.text()} cannot be met: the nearest that can is {number_text(least, ROUND_CEILING)}"


def _nearest(limit: Limit, others: list[Limit], allowed: np.ndarray) -> str:
    """Numbers are rounded so that they can be met as they are printed."""
    for other in list(others):
        rest = [each for each in others if each is not other]
        if not _holds([*rest, limit], allowed):
            others = rest
    beside = f" beside {' and '.join(other.text() for other in others)}" if others else ""
    least, most = (_extreme(limit, others, allowed, sign=sign) for sign in (-1, 1))
    assert least is not None, "the others hold"
    assert most is not None, "the others hold"
    if limit.high < least:
        nearest = f"{number_text(least, ROUND_CEILING)} (the least)"
    elif limit.low > most:
        nearest = f"{number_text(most, ROUND_FLOOR)} (the most)"
    else:
        below = _extreme(limit, others, allowed, sign=1, high=limit.high)
        above = _extreme(limit, others, allowed, sign=-1, low=limit.low)
        assert below is not None, "the least is below"
        assert above is not None, "the most is above"
        # As the most, both: a number that stands alone is that.
        nearest = f"{number_text(below, ROUND_CEILING)} or {number_text(above, ROUND_CEILING)} (nothing lies between)"
    return f"{limit.text()} cannot be met{beside}: the nearest that can is {nearest}"


def _holds(limits: Sequence[Limit], allowed: np.ndarray) -> bool:
    return solve(np.zeros(allowed.shape), allowed, [limit.row for limit in limits]) is not None


def _extreme(
    limit: Limit, others: Sequence[Limit], allowed: np.ndarray, *, sign: int, low: float = -math.inf, high: float = math.inf
) -> float | None:
    """The most (sign 1) or least (-1) that the limited quantity can be beside the others, between `low` and `high`."""
    rows = [ConstraintRow(limit.weights, low - limit.base, high - limit.base), *(other.row for other in others)]
    code = solve(sign * limit.weights, allowed, rows)
    return None if code is None else limit.base + float(rows[0].total(code))
