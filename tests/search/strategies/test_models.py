"""What the other strategies are made of: the integer program, the chain and its regression, suggestions, placements by hand."""

import numpy as np
import optuna
import pytest

from configs import ConfigError
from models.spec.placement import parse_placement
from search.budget import Budget
from search.strategies.bookend import Bookend
from search.strategies.exact import Exact, finite
from search.strategies.interleave import Interleave
from search.strategies.pairwise import Pairwise
from search.strategies.shared.chain import Chain, Regression, best_codes
from search.strategies.shared.strategy import best
from search.strategies.tpe import Tpe
from tests.search.landscapes import CHOICE_OF_WIDTHS, Landscape, everything, mixed_space, space

THREE = ("attention", "window", "linear")


@pytest.mark.parametrize("anchor", ["main", "cheapest"])
def test_solutions_are_the_best_of_the_additive_model_and_differ(anchor):
    rack = space(6, THREE)
    budget = Budget.of({"attention": 2, "kv_bytes": "60%"}, rack)
    evaluate = Landscape(rack.slots(), 2)
    rounds = Exact(anchor=anchor, n_solutions=4, distance=3, refine=False).search(rack, budget, evaluate)
    assert len(rounds) == 2
    assert len(rounds[0]) == 1 + 6 * 2
    solutions = budget.coding.encode([candidate.placement for candidate in rounds[1]])
    assert len(solutions) == 4
    assert all((one != other).sum() >= 3 for index, one in enumerate(solutions) for other in solutions[:index])
    scores = [candidate.score for candidate in rounds[1]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(evaluate.best(budget))


def test_an_anchor_that_is_not_allowed_takes_the_cheapest_there():
    rack = space(3, THREE)
    rounds = Exact(refine=False).search(rack, {"forbid": {0: "attention"}, "pin": {1: "window"}}, Landscape(rack.slots()))
    assert rounds[0][-1].placement == ("linear", "window", "attention")
    assert all(candidate.placement[1] == "window" for candidate in rounds[0])


def test_failed_scores_count_as_worse_than_the_worst():
    assert finite(np.array([1.0, -np.inf, 3.0])).tolist() == [1.0, -1.0, 3.0]
    assert finite(np.array([-np.inf])).tolist() == [0.0]


@pytest.mark.parametrize("value", [{"attention": 2}, {"kv_bytes": "50%"}, {"attention": "1..2", "wide": 2}, {}])
def test_dynamic_programming_finds_the_best_of_a_chain(value):
    rack = space(3, ("attention", "linear"), CHOICE_OF_WIDTHS) if "wide" in value else space(6, THREE)
    budget = Budget.of(value, rack)
    for seed in range(4):
        landscape = Landscape(rack.slots(), seed, interaction=0.7, reach=2)
        found = best_codes(budget, Chain(landscape.single, landscape.pairs), 5)
        assert budget.admits_all(found).all()
        assert len(np.unique(found, axis=0)) == len(found)
        scores = landscape.scores(found)
        assert scores[0] == pytest.approx(landscape.best(budget))
        assert (np.diff(scores) <= 1e-12).all()


def test_a_regression_recovers_a_chain():
    rack = space(6, THREE)
    landscape = Landscape(rack.slots(), 5, interaction=0.5, reach=1)
    codes = landscape.coding.encode(everything(rack.slots()))
    seen = np.random.default_rng(0).permutation(len(codes))[:200]
    model = Regression(codes[seen], landscape.scores(codes[seen]), 3, 1)
    unseen = np.setdiff1d(np.arange(len(codes)), seen)
    rebuilt = Landscape(rack.slots(), reach=1)
    for chain, least in ((model.mean(), 0.999), (model.sample(np.random.default_rng(1)), 0.99)):
        rebuilt.single, rebuilt.pairs = chain
        assert np.corrcoef(rebuilt.scores(codes[unseen]), landscape.scores(codes[unseen]))[0, 1] > least


def test_a_regression_needs_no_pairs():
    rack = space(3)
    landscape = Landscape(rack.slots())
    codes = landscape.coding.encode(everything(rack.slots()))
    assert Regression(codes, landscape.scores(codes), 2, 0).mean().pairs.shape == (0, 3, 2, 2)


def test_suggestions_outside_of_the_budget_are_moved_into_it():
    rack = space(6, THREE)
    budget = Budget.of({"attention": 1, "window": 1}, rack)
    landscape = Landscape(rack.slots())
    rounds = Tpe(n_evaluations=20, n_random=4, batch_size=8).search(rack, budget, landscape)
    assert all(candidate.is_admitted for scored in rounds for candidate in scored)
    assert len(landscape.asked) == 20


def test_suggestions_of_a_round_do_not_count_as_poor_ones_whatever_optuna_takes_for_granted(monkeypatch):
    given, sampler = [], optuna.samplers.TPESampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **options: given.append(options) or sampler(**options))
    rack = space(3)
    Tpe(n_evaluations=2).search(rack, Budget.of(1, rack), Landscape(rack.slots()))
    assert [options["constant_liar"] for options in given] == [False]


@pytest.mark.parametrize(
    ("strategy", "value", "expected"),
    [
        (Interleave(), 3, "every:4:attention:linear"),
        (Interleave(), 0, "all:linear"),
        (Interleave(), 12, "all:attention"),
        (Interleave(), 5, "linear, attention, linear, attention, linear*2, attention, linear, attention, linear*2, attention"),
        (Interleave(rest="window"), 4, "every:3:attention:window"),
        (Interleave(name="window"), {"attention": 0, "window": 4}, "every:3:window:linear"),
        (Interleave(), {"kv_bytes": "25%"}, "every:4:attention:linear"),
        (Bookend(), 2, "bookend:attention:linear"),
        (Bookend(), 5, "attention*3, linear*7, attention*2"),
        (Bookend(), 1, "attention, linear*11"),
        (Bookend(rest="window"), {"attention": "<=4"}, "attention*2, window*8, attention*2"),
    ],
)
def test_placements_by_hand(strategy, value, expected):
    rack = space(12, THREE)
    evaluate = Landscape(rack.slots())
    strategy.search(rack, value, evaluate)
    assert evaluate.asked == [parse_placement(expected, rack.slots())]


def test_by_hand_gives_way_to_pins_and_counts_as_little_as_it_must():
    rack = space(12, THREE)
    budget = Budget.of({"attention": 3, "window": 2, "pin": {0: "attention", 11: "linear"}}, rack)
    chosen = best(Interleave().search(rack, budget, Landscape(rack.slots()))).placement
    wanted = parse_placement("every:4:attention:linear", rack.slots())
    assert budget.admits(chosen)
    # Layers 0 and 11 are pinned, so one wanted attention goes, and two layers must have the window.
    assert sum(name != other for name, other in zip(chosen, wanted, strict=True)) == 4


def test_by_hand_takes_what_each_slot_has():
    rack = mixed_space()
    chosen = Bookend().search(rack, {"attention": 2}, Landscape(rack.slots()))[0][0].placement
    assert chosen == ("attention", "wide", "linear", "wide", "linear", "wide", "gdn", "attention")


@pytest.mark.parametrize("option", ["name", "rest"])
def test_by_hand_needs_names_that_there_are(option):
    with pytest.raises(ConfigError, match=f"{option}: no layer has 'atention'; did you mean 'attention'"):
        Interleave(**{option: "atention"}).search(space(), 2, Landscape(space().slots()))


@pytest.mark.parametrize("value", [{}, 2, {"kv_bytes": "50%"}])
@pytest.mark.parametrize("reach", [0, 1, 9])
def test_pairs_may_reach_over_none_and_over_all_slots(reach, value):
    rack = space(6)
    budget, landscape = Budget.of(value, rack), Landscape(rack.slots(), 1, interaction=0.1)
    rounds = Pairwise(reach=reach, n_random=12).search(rack, budget, landscape)
    assert best(rounds).score == pytest.approx(landscape.best(budget))


def test_a_search_goes_on_where_no_optimum_of_a_model_is_found(monkeypatch):
    rack = space(10, THREE)
    monkeypatch.setattr("search.strategies.pairwise.best_codes", lambda *_: np.empty((0, 10), dtype=np.int16))
    rounds = Pairwise(n_random=8, n_rounds=3, batch_size=4).search(rack, 4, Landscape(rack.slots()))
    assert best(rounds).is_admitted
    assert [len(scored) for scored in rounds] == [8, 3, 3, 3]  # one for the mean, two for draws
