"""What a validation is: a space small enough to train every placement, a budget, and the strategies that are judged."""

import itertools
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from configs import Problems
from models import Placement
from search.budget import Budget, BudgetValue
from search.jobs.pipeline.spec import RetrainSpec
from search.jobs.placement.spec import ScoringSpec
from search.jobs.supernet.spec import SupernetSpec
from search.strategies import STRATEGIES

MOST_CHOICES = 2**16
"""How many placements are gone through to find those within the budget."""


class ValidateSpec(ScoringSpec):
    """Train every placement within the budget from scratch, and see what the supernet and the strategies make of them.

    `most_placements` is a guard: a space with more of them is refused. Each strategy starts anew, with the supernet of each of
    `supernet_seeds`.
    """

    job: Literal["validate"] = "validate"
    supernet: SupernetSpec
    supernet_seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    budget: BudgetValue
    strategies: Annotated[dict[str, STRATEGIES.field()], Field(min_length=1)]  # type: ignore[valid-type]
    retrain: RetrainSpec = RetrainSpec(seeds=(0, 1, 2))
    most_placements: PositiveInt = 40

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand a list of strategies."""
        del problems
        if isinstance(raw.get("strategies"), list | tuple):
            raw["strategies"] = {str(name): name for name in raw["strategies"]}
        return raw

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        problems = Problems()
        try:
            n_placements = len(self.placements())
        except ValueError as error:
            problems.add(("budget",), str(error))
        else:
            if n_placements > self.most_placements:
                told = f"{n_placements} placements are within it, more than most_placements = {self.most_placements}"
                problems.add(("budget",), f"{told}: each would be trained {len(self.retrain.seeds)} time(s)")
            elif n_placements < 3:
                problems.add(("budget",), f"{n_placements} placement(s) are within it: nothing to rank")
        problems.raise_if_any("ValidateSpec")
        return self

    def placements(self) -> list[Placement]:
        """Every placement within the budget."""
        space = self.supernet.rack
        budget, n_choices = Budget.of(self.budget, space), 1
        for slot in space.slots():
            n_choices *= len(slot.names)
        if n_choices > MOST_CHOICES:
            raise ValueError(f"the space has {n_choices:,} placements; it has to be small enough to train each within the budget")
        return [each for each in itertools.product(*(slot.names for slot in space.slots())) if budget.admits(each)]
