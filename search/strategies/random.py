"""Random placements within the budget: the least that a strategy must beat."""

from pydantic import NonNegativeInt, PositiveInt

from models.ops.checks import at_least
from search.budget import Budget
from search.budget.admitted import Admitted
from search.samplers.shared.sampler import generator
from search.strategies.shared.strategy import Ask, Questions, Strategy


class Random(Strategy):
    """`n_evaluations` different placements, `batch_size` in a round; fewer, if no more are found."""

    def __init__(self, *, n_evaluations: PositiveInt = 256, batch_size: PositiveInt = 32, seed: NonNegativeInt = 0) -> None:
        at_least(1, n_evaluations=n_evaluations, batch_size=batch_size)
        at_least(0, seed=seed)
        self._n_evaluations, self._batch_size, self._seed = n_evaluations, batch_size, seed

    def rounds(self, budget: Budget) -> Questions:
        """Rounds of new placements."""
        admitted, random = Admitted(budget), generator("random", self._seed)
        drawn = admitted.draw_new(random, self._n_evaluations)
        for start in range(0, len(drawn), self._batch_size):
            yield Ask(drawn[start : start + self._batch_size], keep=1)
