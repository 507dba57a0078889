"""Scores that are not finite: every strategy finds the best that is, and says so where there is none."""

import itertools
import math

import numpy as np
import pytest

from search.budget import Budget
from search.runs.errors import RunError
from search.strategies import STRATEGIES
from search.strategies.beam import Beam
from search.strategies.exact import Exact
from search.strategies.shared.strategy import best, best_finite
from search.strategies.tpe import Tpe
from tests.search.landscapes import Landscape, everything, space

BY_HAND = ("interleave", "bookend")
SEARCHING = [kind for kind in STRATEGIES if kind not in BY_HAND]
QUICK = {"tpe": {"n_evaluations": 96}}
NAMES = ("attention", "gdn", "linear")
BUDGETS = {"two of the main": {"attention": 2}, "at most two": {"attention": "<=2"}, "none": {}}
CHEAP = "a mixer that is cheap"
POISONS = {
    CHEAP: lambda placement: "linear" in placement,
    "a mixer between": lambda placement: "gdn" in placement,
    "the main one in the first layer": lambda placement: placement[0] == "attention",
    "all but two": lambda placement: placement.count("gdn") != 2 or placement[1] != "gdn",
}


class Poisoned(Landscape):
    """A landscape in which the scores of some placements are not finite."""

    def __init__(self, slots, is_poisoned, value):
        super().__init__(slots, seed=3, interaction=0.2)
        self.is_poisoned, self.value = is_poisoned, value

    def __call__(self, placements):
        scores = super().__call__(placements)
        return [self.value if self.is_poisoned(each) else score for each, score in zip(placements, scores, strict=True)]


def best_there_is(landscape, rack, budget):
    sound = [each for each in everything(rack.slots()) if budget.admits(each) and not landscape.is_poisoned(each)]
    return max(landscape.scores(budget.coding.encode(sound)))


@pytest.mark.parametrize("kind", SEARCHING)
@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize(
    ("poison", "value"), [*((poison, math.nan) for poison in POISONS), (CHEAP, -math.inf), (CHEAP, math.inf)]
)
def test_the_best_finite_candidate_is_found(kind, name, poison, value):
    rack = space(4, NAMES)
    budget, landscape = Budget.of(BUDGETS[name], rack), Poisoned(rack.slots(), POISONS[poison], value)
    rounds = STRATEGIES.build(STRATEGIES.part({"kind": kind, **QUICK.get(kind, {})})).search(rack, budget, landscape)
    assert best_finite(rounds).score == pytest.approx(best_there_is(landscape, rack, budget))
    assert all(math.isfinite(each.score) or each.score == -math.inf for each in itertools.chain(*rounds))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_none_that_is_finite_is_said(kind):
    rack = space(4, NAMES)
    rounds = STRATEGIES[kind]().search(rack, 2, Poisoned(rack.slots(), lambda _: True, math.nan))
    assert best(rounds).is_admitted
    with pytest.raises(RunError, match=r"none of the \d+ candidate\(s\) scored within the budget has a finite score"):
        best_finite(rounds)


@pytest.mark.parametrize("strategy", [Beam(refine=False), Beam(early_stop=0.5), Exact(refine=False), Exact(anchor="cheapest")])
def test_a_search_without_a_local_one_ends_at_a_finite_score_too(strategy):
    rack = space(8, NAMES)
    landscape = Poisoned(rack.slots(), lambda placement: placement[0] != "gdn" or "attention" in placement, -math.inf)
    assert math.isfinite(best_finite(strategy.search(rack, {}, landscape)).score)


def test_tpe_learns_to_avoid_what_is_not_finite():
    """A round all of which is not finite must not look like a good one: told as a number, 0 would be above every finite score."""
    rack = space(8, NAMES)
    poisoned = Poisoned(rack.slots(), lambda placement: placement[:2] != ("gdn", "gdn"), math.nan)  # 8 of 9 at random
    poisoned.single -= 10.0
    rounds = Tpe(n_evaluations=64, n_random=2, batch_size=2).search(rack, {}, poisoned)
    assert np.mean([math.isfinite(candidate.score) for candidate in itertools.chain(*rounds)]) > 0.3
