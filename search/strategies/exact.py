"""The scores of single replacements as an additive model, solved exactly under all limits by an integer program."""

from typing import Literal

import numpy as np
from pydantic import PositiveInt

from models.ops.checks import at_least
from search.budget import Budget
from search.budget.program import ConstraintRow
from search.strategies.shared.local_search import finite_start, refine
from search.strategies.shared.strategy import Ask, Questions, Strategy


class Exact(Strategy):
    """Replace one name at a time in the `anchor` (all main, or all cheapest); the `n_solutions` best sums of what that gained.

    Solutions differ in `distance` slots at least. All are scored, and `refine` goes on from the best with swaps between slots.
    """

    def __init__(
        self,
        *,
        anchor: Literal["main", "cheapest"] = "main",
        n_solutions: PositiveInt = 8,
        distance: PositiveInt = 2,
        refine: bool = True,
    ) -> None:
        if anchor not in ("main", "cheapest"):
            raise ValueError(f"anchor = {anchor} must be main or cheapest")
        at_least(1, n_solutions=n_solutions, distance=distance)
        self._anchor, self._n_solutions, self._distance, self._is_refined = anchor, n_solutions, distance, refine

    def rounds(self, budget: Budget) -> Questions:
        """A round of single replacements, one of solutions, then those of the local search."""
        anchor = self._start(budget)
        slots, names = np.nonzero(budget.allowed & (np.arange(budget.allowed.shape[1]) != anchor[:, None]))
        codes = np.repeat(anchor[None], len(slots) + 1, axis=0)
        codes[np.arange(len(slots)), slots] = names
        scores = np.array((yield Ask(budget.coding.decode(codes))))
        gains = np.zeros(budget.allowed.shape)
        gains[slots, names] = finite(scores)[:-1] - finite(scores)[-1]
        found = np.array(self._solutions(budget, gains))
        scores = np.array((yield Ask(budget.coding.decode(found), keep=1)))
        code, score = yield from finite_start(budget, found[scores.argmax()], float(scores.max()))
        if self._is_refined:
            yield from refine(budget, code, score)

    def _start(self, budget: Budget) -> np.ndarray:
        """The anchor, with the cheapest name that is allowed where its own is not."""
        number, costs = budget.coding.number, budget.costs
        code = []
        for index, slot in enumerate(budget.coding.slots):
            allowed = [name for name in costs.dear_to_cheap_in(index) if budget.allowed[index, number[name]]]
            code.append(number[slot.main if self._anchor == "main" and slot.main in allowed else allowed[-1]])
        return np.array(code, dtype=np.int16)

    def _solutions(self, budget: Budget, gains: np.ndarray) -> list[np.ndarray]:
        solutions: list[np.ndarray] = []
        cuts: list[ConstraintRow] = []
        for _ in range(self._n_solutions):
            code = budget.solve(gains, also=cuts)
            if code is None:
                break
            solutions.append(code)
            same = (np.arange(gains.shape[1]) == code[:, None]).astype(float)
            cuts.append(ConstraintRow(same, 0.0, float(len(code) - self._distance)))
        return solutions


def finite(scores: np.ndarray) -> np.ndarray:
    """Scores with those that are no number set below the worst, by the spread of the others, so that models can be fitted."""
    usual = scores[np.isfinite(scores)]
    if not len(usual):
        return np.zeros(len(scores))
    return np.where(np.isfinite(scores), scores, usual.min() - (np.ptp(usual) or 1.0))
