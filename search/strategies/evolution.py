"""Evolution: crossing and changing the best placements so far."""

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from models.ops.checks import at_least
from search.budget import Budget
from search.budget.admitted import Admitted
from search.samplers.shared.sampler import generator
from search.strategies.shared.strategy import Ask, Questions, Strategy

_TRIES = 50
"""How often children are made; what is known by then, or outside of the budget, is not asked for."""


class Evolution(Strategy):
    """The `population` best placements have `n_children` new ones a round, until `n_evaluations` are scored or nothing is new.

    A child takes each slot from one of two parents, if the budget admits that, else all from the first; then a swap or a
    replacement changes it. Three parents in four are of the better half of the population, so that is what a race tells apart.
    """

    def __init__(
        self,
        *,
        n_evaluations: PositiveInt = 512,
        population: PositiveInt = 32,
        n_children: PositiveInt = 32,
        seed: NonNegativeInt = 0,
    ) -> None:
        at_least(1, n_evaluations=n_evaluations, population=population, n_children=n_children)
        at_least(0, seed=seed)
        self._n_evaluations, self._population, self._n_children, self._seed = n_evaluations, population, n_children, seed

    def rounds(self, budget: Budget) -> Questions:
        """A round of random placements, then one a generation."""
        random = generator("evolution", self._seed)
        new = budget.coding.encode(Admitted(budget).draw_new(random, min(self._population, self._n_evaluations)))
        codes, scores = new[:0], np.empty(0)
        seen: set[bytes] = set()
        while len(new):
            seen.update(code.tobytes() for code in new)
            found = yield Ask(budget.coding.decode(new), keep=(self._population + 1) // 2)
            codes, scores = np.concatenate([codes, new]), np.concatenate([scores, found])
            best = np.argsort(-scores, kind="stable")[: self._population]
            codes, scores = codes[best], scores[best]
            new = self._children(budget, codes, seen, random)

    def _children(self, budget: Budget, parents: np.ndarray, seen: set[bytes], random: np.random.Generator) -> np.ndarray:
        n_wanted = min(self._n_children, self._n_evaluations - len(seen))
        children: dict[bytes, np.ndarray] = {}
        for _ in range(_TRIES):
            if len(children) >= n_wanted:
                break
            for child in _offspring(budget, parents, n_wanted, random):
                if child.tobytes() not in seen:
                    children.setdefault(child.tobytes(), child)
        return np.array(list(children.values())[:n_wanted], dtype=np.int16).reshape(-1, parents.shape[1])


def _offspring(budget: Budget, parents: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """Those of `n` children that the budget admits."""
    n_slots, n_names = budget.allowed.shape
    # The better of two random ones, twice: codes are sorted by their scores.
    first, second = parents[random.integers(len(parents), size=(2, 2, n)).min(0)]
    crossed = np.where(random.random((n, n_slots)) < 0.5, first, second)
    children = np.where(budget.admits_all(crossed)[:, None], crossed, first)
    each, is_swap = np.arange(n), random.random(n) < 0.5
    one, other = random.integers(n_slots, size=(2, n))
    new, old = np.where(is_swap, children[each, other], random.integers(n_names, size=n)), children[each, one]
    children[each, one] = new
    children[each, other] = np.where(is_swap, old, children[each, other])
    return children[budget.admits_all(children)]
