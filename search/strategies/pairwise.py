"""Additive and short-range terms regressed on scored placements; the optimum by dynamic programming, scored, and again."""

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from models.ops.checks import at_least
from search.budget import Budget
from search.budget.admitted import Admitted
from search.samplers.shared.sampler import generator
from search.strategies.exact import finite
from search.strategies.shared.chain import Regression, best_codes
from search.strategies.shared.strategy import Ask, Questions, Strategy


class Pairwise(Strategy):
    """Fit a model of single slots and of pairs up to `reach` slots apart to `n_random` placements, and score its optimum.

    A round has `batch_size` placements: the best of the model, and the best of models that the scores leave possible as well.
    Where no optimum of a model is found (`MOST_STATES` in `shared/chain.py`), a random placement takes its place. The model is
    fitted anew after each of up to `n_rounds`; a round that brings nothing new is the last.
    """

    def __init__(
        self,
        *,
        n_random: PositiveInt = 128,
        n_rounds: PositiveInt = 12,
        batch_size: PositiveInt = 16,
        reach: NonNegativeInt = 2,
        seed: NonNegativeInt = 0,
    ) -> None:
        at_least(1, n_random=n_random, n_rounds=n_rounds, batch_size=batch_size)
        at_least(0, reach=reach, seed=seed)
        self._n_random, self._n_rounds, self._batch_size, self._reach, self._seed = n_random, n_rounds, batch_size, reach, seed

    def rounds(self, budget: Budget) -> Questions:
        """A round of random placements, then one a fit."""
        random = generator("pairwise", self._seed)
        admitted = Admitted(budget)
        codes = budget.coding.encode(admitted.draw_new(random, self._n_random))
        scores = np.array((yield Ask(budget.coding.decode(codes), keep=1)))
        for _ in range(self._n_rounds):
            new, n_missing = self._proposed(budget, codes, finite(scores), random)
            drawn = admitted.draw_new(random, n_missing, {*budget.coding.decode(codes), *budget.coding.decode(new)})
            new = np.concatenate([new, budget.coding.encode(drawn)])
            if not len(new):
                return
            found = yield Ask(budget.coding.decode(new), keep=1)
            codes, scores = np.concatenate([codes, new]), np.concatenate([scores, found])

    def _proposed(
        self, budget: Budget, codes: np.ndarray, scores: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """The new ones among the models' optima, and for how many models none was found."""
        model = Regression(codes, scores, len(budget.coding.names), self._reach)
        half = (self._batch_size + 1) // 2
        optima = [best_codes(budget, model.mean(), half)]
        optima += [best_codes(budget, model.sample(random), 1) for _ in range(self._batch_size - half)]
        seen = {code.tobytes() for code in codes}
        new = {code.tobytes(): code for code in np.concatenate(optima) if code.tobytes() not in seen}
        return np.array(list(new.values()), dtype=np.int16).reshape(-1, codes.shape[1]), sum(not len(found) for found in optima)
