"""Hierarchical beam search: dear names are handed out first, slot by slot, then the next ones; then a local search."""

import math
from collections.abc import Generator

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from configs import ConfigError
from configs.errors import known_names
from models.ops.checks import at_least
from search.budget import Budget
from search.strategies.shared.local_search import finite_start, refine
from search.strategies.shared.prefix_growth import Growth
from search.strategies.shared.strategy import Ask, Questions, Strategy

Beamed = tuple[np.ndarray, np.ndarray]
"""Codes [n, n_slots], the best first, and their scores [n]."""


class Beam(Strategy):
    """Start with the cheapest name in every slot; phase i gives the i-th dearest name to one more slot at a time.

    Each phase grows every code of the beam, keeps the `initial_width` best after the first slot and the `width` best after
    each further one, and ends with the best of all sizes that the budget can be met from: exactly the count where the budget
    gives one, else whatever scored best, where growth stops as soon as it gains nothing (no more than `early_stop` of the best
    score, if given). `refine` goes on with swaps between slots. `order` are the names from dear to cheap; by the memory that a
    sequence takes, if not given.
    """

    def __init__(
        self,
        *,
        width: PositiveInt = 12,
        initial_width: PositiveInt = 12,
        refine: bool = True,
        early_stop: NonNegativeFloat | None = None,
        order: tuple[str, ...] | None = None,
    ) -> None:
        at_least(1, width=width, initial_width=initial_width)
        if early_stop is not None and early_stop < 0:
            raise ValueError(f"early_stop = {early_stop} must be at least 0")
        self._width, self._initial_width = width, initial_width
        self._is_refined, self._early_stop, self._order = refine, early_stop or 0.0, order

    def rounds(self, budget: Budget) -> Questions:
        """A round for every slot that is added, then the rounds of the local search."""
        growth = Growth(budget, self._names(budget))
        scores = yield Ask(budget.coding.decode(growth.start[None]))
        beam: Beamed = growth.start[None], np.array(scores)
        for phase in range(len(growth.order) - 1):
            beam = yield from self._grown(budget, growth, phase, beam)
        code, score = yield from finite_start(budget, beam[0][0], float(beam[1][0]))
        if self._is_refined:
            yield from refine(budget, code, score)

    def _grown(self, budget: Budget, growth: Growth, phase: int, beam: Beamed) -> Generator[Ask, list[float], Beamed]:
        """The best codes after a phase, from which the later ones can meet the budget."""
        level, scores = beam
        pool = _closed(growth, phase, beam)
        width = self._initial_width
        while len(children := growth.children(level, phase)):
            scores = np.array((yield Ask(budget.coding.decode(children), keep=width)))
            level, scores = _best((children, scores), width)
            width = self._width
            is_better = self._is_better(float(scores[0]), pool[1])
            closed = _closed(growth, phase, (level, scores))
            pool = _best((np.concatenate([pool[0], closed[0]]), np.concatenate([pool[1], closed[1]])), width)
            if not is_better and len(pool[1]):
                break
        return pool

    def _is_better(self, score: float, pool: np.ndarray) -> bool:
        """Whether growth goes on; nothing that is not finite says that it leads nowhere."""
        if not len(pool) or not math.isfinite(pool[0]):
            return True
        return score > pool[0] + self._early_stop * abs(pool[0])

    def _names(self, budget: Budget) -> tuple[str, ...]:
        names = budget.coding.names
        if self._order is None:
            return budget.costs.by_cost()
        for name in self._order:
            if name not in names:
                raise ConfigError(f"order: no layer has '{name}'; {known_names(name, names)}")
        if sorted(self._order) != sorted(names):
            raise ConfigError(f"order: expected each of these names once: {', '.join(names)} (got {', '.join(self._order)})")
        return self._order


def _best(beam: Beamed, width: int) -> Beamed:
    chosen = np.argsort(-beam[1], kind="stable")[:width]
    return beam[0][chosen], beam[1][chosen]


def _closed(growth: Growth, phase: int, beam: Beamed) -> Beamed:
    """Those that the phases after this one can complete."""
    is_closed = growth.can_be_met(beam[0], phase + 1)
    return beam[0][is_closed], beam[1][is_closed]
