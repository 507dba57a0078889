"""The contract of strategies: every kind keeps the budget, scores nothing twice, finds what is easy, repeats and resumes."""

import itertools
import math

import pytest

from configs import ConfigError
from search.budget import Budget
from search.strategies import STRATEGIES
from search.strategies.random import Random
from search.strategies.shared.strategy import Ask, Strategy, best
from tests.search.landscapes import CHOICE_OF_WIDTHS, Landscape, everything, mixed_space, space

BY_HAND = ("interleave", "bookend")
QUICK = {
    "evolution": {"n_evaluations": 96},
    "pairwise": {"n_random": 16, "n_rounds": 3},
    "tpe": {"n_evaluations": 24, "n_random": 8, "batch_size": 8},
}
SEARCHING = [kind for kind in STRATEGIES if kind not in BY_HAND]
THREE = ("attention", "window", "linear")
BUDGETS = {
    "so many layers": (space(), 2),
    "none at all": (space(), 0),
    "all of them": (space(), 6),
    "each mixer counted": (space(6, THREE), {"attention": 2, "window": 3, "linear": 1}),
    "a range": (space(6, THREE), {"attention": "1..2", "window": ">=2"}),
    "the cheap one counted": (space(6, THREE), {"linear": 4}),
    "bytes": (space(6, THREE), {"kv_bytes": "40%"}),
    "bytes at least": (space(6, THREE), {"kv_bytes": "50%..70%"}),
    "bytes and a count": (space(6, THREE), {"kv_bytes": "40%", "attention": ">=1", "window": "<=2"}),
    "pins": (space(6, THREE), {"attention": 2, "pin": {0: "attention", 3: "window"}, "forbid": {5: ["attention", "linear"]}}),
    "channel mixers": (space(3, ("attention", "linear"), CHOICE_OF_WIDTHS), {"attention": 1, "none": 1, "params": "90%"}),
    "different slots": (mixed_space(), {"attention": 2, "gdn": "<=1", "wide": ">=1", "pin": {"1.mlp": "narrow"}}),
}


def strategy(kind, **options):
    return STRATEGIES.build(STRATEGIES.part({"kind": kind, **QUICK.get(kind, {}), **options}))


def candidates(rounds):
    return [candidate for scored in rounds for candidate in scored]


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("name", BUDGETS)
def test_the_budget_is_kept_exactly_and_nothing_is_scored_twice(kind, name):
    rack, value = BUDGETS[name]
    evaluate = Landscape(rack.slots(), seed=1, interaction=0.3)
    rounds = strategy(kind).search(rack, value, evaluate)
    budget = Budget.of(value, rack)
    assert best(rounds).is_admitted
    assert budget.admits(best(rounds).placement)
    assert all(candidate.is_admitted == budget.admits(candidate.placement) for candidate in candidates(rounds))
    assert len(evaluate.asked) == len(set(evaluate.asked))
    assert evaluate.asked == [candidate.placement for candidate in candidates(rounds)]
    assert all(rounds)


@pytest.mark.parametrize("kind", SEARCHING)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_optimum_of_an_additive_landscape_is_found(kind, seed):
    rack, budget = space(), Budget.of(2, space())
    evaluate = Landscape(rack.slots(), seed)
    rounds = strategy(kind).search(rack, 2, evaluate)
    assert best(rounds).score == pytest.approx(evaluate.best(budget))


@pytest.mark.parametrize("kind", ["beam", "exact", "pairwise"])
@pytest.mark.parametrize("value", [{"attention": 2}, {"attention": 2, "window": 1, "gdn": 2}, {"kv_bytes": "50%"}])
def test_the_optimum_of_a_larger_additive_landscape_is_found(kind, value):
    rack = space(7, ("attention", "window", "gdn", "linear"))
    budget = Budget.of(value, rack)
    for seed in range(3):
        evaluate = Landscape(rack.slots(), seed)
        rounds = STRATEGIES[kind]().search(rack, budget, evaluate)
        assert best(rounds).score == pytest.approx(evaluate.best(budget))
        assert len(evaluate.asked) < len(everything(rack.slots())) / 10


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_search_is_the_same_again(kind):
    rack, value = BUDGETS["bytes and a count"]
    first, second = (strategy(kind).search(rack, value, Landscape(rack.slots(), interaction=0.3)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", ["evolution", "pairwise", "random", "tpe"])
def test_another_seed_is_another_search(kind):
    rack = space(8, THREE)
    first, second = (strategy(kind, seed=seed).search(rack, 3, Landscape(rack.slots())) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("kind", STRATEGIES)
def test_an_interrupted_search_goes_on_from_what_was_scored(kind):
    rack, value = BUDGETS["a range"]
    whole = Landscape(rack.slots(), interaction=0.3)
    undisturbed = strategy(kind).search(rack, value, whole)
    for n_before in (0, len(undisturbed) // 2):
        landscape, log, rounds_left = Landscape(rack.slots(), interaction=0.3), {}, itertools.count(n_before, -1)

        def remembering(placements, landscape=landscape, log=log, rounds_left=rounds_left):
            new = [placement for placement in placements if placement not in log]
            if new and next(rounds_left) == 0:
                raise KeyboardInterrupt
            log.update(zip(new, landscape(new), strict=True))
            return [log[placement] for placement in placements]

        with pytest.raises(KeyboardInterrupt):
            strategy(kind).search(rack, value, remembering)
        assert strategy(kind).search(rack, value, remembering) == undisturbed
        assert landscape.asked == whole.asked


def test_a_score_that_is_no_number_is_the_worst():
    rack = space()
    landscape = Landscape(rack.slots())
    expected = best(STRATEGIES["random"]().search(rack, 2, landscape)).placement

    def evaluate(placements):
        scores = landscape(placements)
        return [math.nan if placement == expected else score for placement, score in zip(placements, scores, strict=True)]

    for kind in SEARCHING:
        chosen = best(strategy(kind).search(rack, 2, evaluate))
        assert chosen.placement != expected
        assert math.isfinite(chosen.score)


def test_an_evaluator_must_score_what_it_was_asked():
    with pytest.raises(ValueError, match="asked for 1 scores and returned 2"):
        STRATEGIES["interleave"]().search(space(), 2, lambda _: [0.0, 0.0])


def test_an_evaluator_that_races_is_told_how_many_to_keep():
    class Racing(Landscape):
        races = True

        def __call__(self, placements, keep):
            kept.append(keep)
            return super().__call__(placements)

    kept = []
    rack = space()
    STRATEGIES["beam"](width=3, initial_width=5).search(rack, 2, Racing(rack.slots()))
    assert kept[:3] == [None, 5, 3]
    assert kept[3:] == [1] * len(kept[3:])


def test_results_are_kept_and_the_first_of_equals_is_the_best():
    class Measured(float):
        pass

    rounds = STRATEGIES["random"]().search(space(), 1, lambda placements: [Measured(1.0) for _ in placements])
    assert all(isinstance(candidate.result, Measured) for candidate in candidates(rounds))
    assert best(rounds) == rounds[0][0]
    assert rounds[0][0].text.count("attention") == 1


def test_a_strategy_that_stays_outside_of_the_budget_has_no_best():
    class Wrong(Strategy):
        def rounds(self, budget):
            yield Ask([("linear",) * len(budget.coding.slots)])

    rounds = Wrong().search(space(), 2, lambda _: [0.0])
    assert not rounds[0][0].is_admitted
    with pytest.raises(ValueError, match="no candidate is within the budget"):
        best(rounds)


def test_random_finds_all_there_are_and_stops():
    assert len(candidates(Random().search(space(), 2, lambda placements: [0.0] * len(placements)))) == 15


def test_a_budget_of_another_space_is_refused():
    with pytest.raises(ConfigError, match="made for another space"):
        STRATEGIES["random"]().search(space(6), Budget.of(2, space(7)), lambda placements: [0.0 for _ in placements])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("beam", {"width": 0}),
        ("beam", {"early_stop": -1.0}),
        ("evolution", {"population": 0}),
        ("exact", {"distance": 0}),
        ("exact", {"anchor": "dearest"}),
        ("pairwise", {"reach": -1}),
        ("random", {"n_evaluations": 0}),
        ("tpe", {"seed": -1}),
    ],
)
def test_options_are_checked_where_a_strategy_is_made_by_hand_too(kind, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} = .* must be "):
        STRATEGIES[kind](**options)


def test_evolution_lets_a_race_end_early():
    strategy, asked = STRATEGIES["evolution"](n_evaluations=100), []

    class Racing(Landscape):
        races = True

        def __call__(self, placements, keep):
            asked.append(len(placements) - keep)
            return super().__call__(placements)

    strategy.search(space(10), 4, Racing(space(10).slots()))
    assert max(asked) >= 16
