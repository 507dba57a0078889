"""The cheapest placement, the dearest, and some random ones, all in one step (Yu and Huang 2019, the sandwich rule)."""

from collections.abc import Sequence

from pydantic import PositiveInt

from models import RackSpec
from models.ops.checks import at_least
from models.spec.placement import Placement, Slot
from search.budget.costs import CostTable
from search.samplers import SAMPLERS, Nested
from search.samplers.shared.sampler import Sampler, single

UNIFORM = SAMPLERS.part("uniform")


class Sandwich(Sampler):
    """`n` placements a step are drawn from `between`. What is dear is what a sequence of length `context` keeps in memory."""

    def __init__(
        self,
        slots: Sequence[Slot],
        space: RackSpec,
        *,
        n: PositiveInt = 2,
        between: Nested = UNIFORM,
        context: PositiveInt | None = None,
    ) -> None:
        super().__init__(slots)
        at_least(1, n=n)
        costs = CostTable.of(space, context)
        orders = [costs.dear_to_cheap_in(index) for index in range(len(self.slots))]
        self._ends = tuple(order[-1] for order in orders), tuple(order[0] for order in orders)
        self._between = single(SAMPLERS.build(between, slots=slots, space=space), "between")
        self.n_per_step = 2 + n

    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """0 is the cheapest, 1 the dearest; after the last it starts again."""
        place = index % self.n_per_step
        return self._ends[place] if place < 2 else self._between.draw(seed, step, index)
