"""One budget: the strategy's search, its rivals, and what the mixers that it counts gain in each layer."""

import math
import time
from collections.abc import Sequence
from typing import Any

from configs.registry import Part
from models import Placement, parse_placement
from search.budget import Budget, CostTable
from search.budget.coding import slot_key
from search.evaluation.evaluator import Evaluator
from search.evaluation.score import paired_difference
from search.jobs.placement.results import BudgetResult, Scored
from search.jobs.placement.spec import SearchSpec
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Candidate, Strategy, best, best_finite


class BudgetSearch:
    """A search under one budget; `costs` is the table that placements are reported by, the same for all budgets of a run."""

    def __init__(self, spec: SearchSpec, budget: Budget, costs: CostTable, evaluator: Evaluator) -> None:
        self.spec, self.budget, self.costs, self.evaluator = spec, budget, costs, evaluator
        self.space = budget.space

    def run(self, value: Any) -> BudgetResult:
        """Search, and sum up; `value` is the budget as the spec has it.

        Raises:
            NoFiniteScoreError: where no candidate within the budget has a finite score.
        """
        started, n_before = time.monotonic(), self.evaluator.n_asked
        strategy: Strategy = STRATEGIES.build(self.spec.strategy)
        rounds = strategy.search(self.space, self.budget, self.evaluator)
        chosen = best_finite(rounds).placement
        seconds, n_new = time.monotonic() - started, self.evaluator.n_asked - n_before
        rivals = {name: self._rival(rival) for name, rival in self.spec.rivals.items()}
        ranked = sorted((each for scored in rounds for each in _finite(scored)), key=lambda each: -each.score)
        admitted = dict.fromkeys(each.placement for each in ranked if each.is_admitted and each.placement != chosen)
        runners_up = list(admitted)[: self.spec.n_best - 1]
        scored = self._scored([chosen, *rivals.values(), *runners_up])
        return BudgetResult(
            budget=value,
            text=self.budget.text(),
            best=scored[0],
            rivals=dict(zip(rivals, scored[1:], strict=False)),
            runners_up=tuple(scored[1 + len(rivals) :]),
            importance=self._importance(chosen),
            rounds=tuple(tuple(candidate.score for candidate in _finite(each)) for each in rounds),
            seen=tuple((self.costs.of_placement(each.placement), each.score) for scored in rounds for each in _finite(scored)),
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
                score=_or_none(score.value),
                standard_error=score.standard_error,
                tasks={task: _or_none(mean) for task, mean in score.tasks.items()},
                difference=_or_none(difference),
                difference_error=error,
                cost=self.costs.of_placement(placement),
                is_admitted=self.budget.admits(placement),
            )
            for placement, score, (difference, error) in zip(placements, scores, differences, strict=True)
        ]

    def _importance(self, chosen: Placement) -> dict[str, dict[str, float | None]]:
        return {name: self._gains(chosen, name) for name in counted_names(self.budget) if self.spec.importance}

    def _gains(self, chosen: Placement, name: str) -> dict[str, float | None]:
        """What a mixer gains in each slot that offers it and another one: the cheapest takes its place there."""
        slots, order = self.budget.coding.slots, self.costs.by_cost
        others = {
            index: [other for other in order(slot.names) if other != name]
            for index, slot in enumerate(slots)
            if name in slot.names and len(slot.names) > 1
        }
        changed = [
            (*chosen[:index], rest[-1] if chosen[index] == name else name, *chosen[index + 1 :]) for index, rest in others.items()
        ]
        score, *scores = (each.value for each in self.evaluator([chosen, *changed]))
        gains = [
            score - without if chosen[index] == name else without - score for index, without in zip(others, scores, strict=True)
        ]
        return {slot_key(slots[index]): _or_none(gain) for index, gain in zip(others, gains, strict=True)}


def counted_names(budget: Budget) -> tuple[str, ...]:
    """The mixers that a budget counts; of one that limits costs alone, the dearest by each; without limits, the dearest."""
    counted = [limit.key for limit in budget.limits if not limit.is_cost]
    dearest = [budget.costs.dearest_by(limit.key) for limit in budget.limits if limit.is_cost]
    return tuple(dict.fromkeys(counted or dearest or [budget.costs.by_cost()[0]]))


def _finite(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if math.isfinite(candidate.score)]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
