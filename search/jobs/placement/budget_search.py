"""One budget: the strategy's search, its rivals, and what the dear mixer gains in each layer."""

import time
from collections.abc import Sequence
from typing import Any

from configs.registry import Part
from models import Placement, parse_placement
from search.budget import Budget, CostTable
from search.evaluation.evaluator import Evaluator
from search.evaluation.score import paired_difference
from search.jobs.placement.results import BudgetResult, Scored
from search.jobs.placement.spec import SearchSpec
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Strategy, best


class BudgetSearch:
    """A search under one budget; `costs` is the table that placements are reported by, the same for all budgets of a run."""

    def __init__(self, spec: SearchSpec, budget: Budget, costs: CostTable, evaluator: Evaluator) -> None:
        self.spec, self.budget, self.costs, self.evaluator = spec, budget, costs, evaluator
        self.space = budget.space

    def run(self, value: Any) -> BudgetResult:
        """Search, and sum up; `value` is the budget as the spec has it."""
        started, n_before = time.monotonic(), self.evaluator.n_asked
        strategy: Strategy = STRATEGIES.build(self.spec.strategy)
        rounds = strategy.search(self.space, self.budget, self.evaluator)
        chosen = best(rounds).placement
        seconds, n_new = time.monotonic() - started, self.evaluator.n_asked - n_before
        rivals = {name: self._rival(rival) for name, rival in self.spec.rivals.items()}
        scored = self._scored([chosen, *rivals.values()])
        return BudgetResult(
            budget=value,
            text=self.budget.text(),
            best=scored[0],
            rivals=dict(zip(rivals, scored[1:], strict=True)),
            importance=self._importance(chosen),
            rounds=tuple(tuple(candidate.score for candidate in each) for each in rounds),
            seen=tuple((self.costs.of_placement(candidate.placement), candidate.score) for each in rounds for candidate in each),
            n_evaluations=sum(map(len, rounds)),
            n_new=n_new,
            seconds=seconds,
        )

    def _rival(self, rival: str | Part) -> Placement:
        if isinstance(rival, str):
            return parse_placement(rival, self.budget.coding.slots)
        strategy: Strategy = STRATEGIES.build(rival)
        return best(strategy.search(self.space, self.budget, self.evaluator)).placement

    def _scored(self, placements: Sequence[Placement]) -> list[Scored]:
        scores = self.evaluator(placements)
        differences = [paired_difference(score, scores[0]) for score in scores]
        return [
            Scored(
                placement=placement,
                score=score.value,
                standard_error=score.standard_error,
                tasks=score.tasks,
                difference=difference,
                difference_error=error,
                cost=self.costs.of_placement(placement),
                is_admitted=self.budget.admits(placement),
            )
            for placement, score, (difference, error) in zip(placements, scores, differences, strict=True)
        ]

    def _importance(self, chosen: Placement) -> tuple[float, ...]:
        slots, order = self.budget.coding.slots, self.costs.by_cost
        dear = order()[0]
        places = [index for index, slot in enumerate(slots) if dear in slot.names]

        def other(index: int) -> Placement:
            name = order(slots[index].names)[-1] if chosen[index] == dear else dear
            return (*chosen[:index], name, *chosen[index + 1 :])

        score, *others = (score.value for score in self.evaluator([chosen, *map(other, places)]))
        return tuple(
            score - without if chosen[index] == dear else without - score for index, without in zip(places, others, strict=True)
        )
