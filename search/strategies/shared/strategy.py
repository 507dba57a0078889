"""The contract of search strategies, and the driver that scores the placements they propose."""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, SupportsFloat

from configs import ConfigError
from models import RackSpec
from models.spec.placement import Placement, placement_text
from search.budget import Budget
from search.runs.errors import NoFiniteScoreError


class Ask(NamedTuple):
    """Placements to be scored in one round. `keep`: how many of the best must be told apart (None: all)."""

    placements: list[Placement]
    keep: int | None = None


class Candidate(NamedTuple):
    """A scored placement. `is_admitted`: it is within the budget, so it may be chosen; others are scored on the way there.

    `result` is what the evaluator returned, `score` the number in it; minus infinity for one that is not finite.
    """

    placement: Placement
    score: float
    text: str
    is_admitted: bool
    result: Any


Rounds = list[list[Candidate]]
Questions = Generator[Ask, list[float], None]


class Evaluate(Protocol):
    """Scores placements, in order; higher is better. One that has `races = True` is called with `keep=` as well."""

    def __call__(self, placements: list[Placement], /) -> Sequence[SupportsFloat]:
        """The scores of the placements: numbers, or what `float` makes numbers of."""


class Strategy(ABC):
    """A way to find a good placement within a budget.

    A kind is one file `search/strategies/<kind>.py` with one class; the keyword arguments of its constructor are its options.
    It never sees an evaluator: `rounds` yields what it wants scored and is sent the scores. So it is resumed by being run again
    with an evaluator that remembers, and it must do the same whenever it is sent the same: randomness comes from a `seed`
    option. It ends having asked for at least one placement within the budget.
    """

    @abstractmethod
    def rounds(self, budget: Budget) -> Questions:
        """Yield the placements of each round, and be sent their scores in that order. What is asked for again costs nothing."""

    def search(self, space: RackSpec, budget: int | Mapping[str, Any] | Budget, evaluate: Evaluate) -> Rounds:
        """Run the strategy to its end; each placement is scored once.

        Args:
            space: the rack whose choices are to be made.
            budget: what is allowed, in any form that `Budget.of` takes.
            evaluate: list of placements -> list of scores; one that is not finite (NaN, or an infinity of either sign) counts as
                the worst.

        Returns:
            The newly scored candidates, a list a round, in the order in which they were asked for; some are outside of the
            budget, scored on the way: `best_finite(rounds)` is the one to take.

        Raises:
            ConfigError: if the budget does not fit the space, or cannot be met.
            ValueError: if the evaluator returns another number of scores than it was asked for.
        """
        limits = Budget.of(budget, space)
        if limits.space != space:
            raise ConfigError("budget: it was made for another space than the one that is searched")
        scores: dict[Placement, float] = {}
        rounds: Rounds = []
        questions = self.rounds(limits)
        ask = next(questions, None)
        while ask is not None:
            new = [placement for placement in dict.fromkeys(ask.placements) if placement not in scores]
            if new:
                rounds.append(_score(new, ask.keep, evaluate, limits))
                scores.update((candidate.placement, candidate.score) for candidate in rounds[-1])
            try:
                ask = questions.send([scores[placement] for placement in ask.placements])
            except StopIteration:
                ask = None
        return rounds


def _score(placements: list[Placement], keep: int | None, evaluate: Evaluate, budget: Budget) -> list[Candidate]:
    options = {"keep": keep} if getattr(evaluate, "races", False) else {}
    results = evaluate(placements, **options)
    if len(results) != len(placements):
        raise ValueError(f"the evaluator was asked for {len(placements)} scores and returned {len(results)}")
    admitted = budget.admits_all(budget.coding.encode(placements))
    return [
        Candidate(placement, _number(result), placement_text(placement), bool(is_admitted), result)
        for placement, result, is_admitted in zip(placements, results, admitted, strict=True)
    ]


def _number(result: SupportsFloat) -> float:
    score = float(result)
    return score if math.isfinite(score) else -math.inf


def best(rounds: Rounds) -> Candidate:
    """The candidate within the budget with the highest score, the first of those that are equal; it may not be finite.

    Raises:
        ValueError: if there is none.
    """
    within = _within(rounds)
    if not within:
        raise ValueError("no candidate is within the budget")
    return max(within, key=lambda candidate: candidate.score)


def best_finite(rounds: Rounds) -> Candidate:
    """The same of those whose score is finite.

    Raises:
        NoFiniteScoreError: if there is none.
    """
    found = best(rounds)
    if not math.isfinite(found.score):
        raise NoFiniteScoreError(f"none of the {len(_within(rounds))} candidate(s) scored within the budget has a finite score")
    return found


def _within(rounds: Rounds) -> list[Candidate]:
    return [candidate for scored in rounds for candidate in scored if candidate.is_admitted]
