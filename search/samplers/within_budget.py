"""Sampling restricted to placements within a budget."""

from collections.abc import Sequence

from models import RackSpec
from models.spec.placement import Placement, Slot
from search.budget import Budget, BudgetValue
from search.budget.admitted import Admitted
from search.samplers.shared.sampler import Sampler, generator


class WithinBudget(Sampler):
    """Every admitted way to share out the names is alike likely, in a random order; `budget` is what `Budget.of` takes."""

    def __init__(self, slots: Sequence[Slot], space: RackSpec, *, budget: BudgetValue) -> None:
        super().__init__(slots)
        self._admitted = Admitted(Budget.of(budget, space))

    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """An admitted placement."""
        return self._admitted.draw(generator("within_budget", seed, step, index))

    def shares(self) -> list[dict[str, float]] | None:
        """Those of the admitted counts, where these are few enough to be listed."""
        return self._admitted.shares()
