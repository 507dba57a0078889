"""The beam and the local search after it: equal to looking at everything, what refining gains, how growth is bounded."""

import numpy as np
import pytest

from configs import ConfigError
from search.budget import Budget
from search.budget.program import ConstraintRow
from search.strategies.beam import Beam
from search.strategies.shared.local_search import far, near, refine
from search.strategies.shared.prefix_growth import Growth
from search.strategies.shared.strategy import best
from tests.search.landscapes import CHOICE_OF_WIDTHS, Landscape, everything, mixed_space, space
from tests.search.strategies.test_strategies import candidates

THREE = ("attention", "window", "linear")
FOUR = ("attention", "window", "gdn", "linear")


@pytest.mark.parametrize("value", [2, {"attention": 2, "window": 2}, {"linear": 3, "attention": ">=1"}])
def test_a_wide_beam_finds_what_looking_at_everything_finds(value):
    rack = space(5, THREE)
    budget = Budget.of(value, rack)
    for seed in range(5):
        evaluate = Landscape(rack.slots(), seed, interaction=0.5)
        rounds = Beam(width=200, initial_width=200).search(rack, budget, evaluate)
        assert best(rounds).score == pytest.approx(evaluate.best(budget))


def test_refining_cuts_the_regret_several_times_for_few_more_evaluations():
    rack = space(9, THREE)
    budget = Budget.of(3, rack)
    regret, n_scored = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for seed in range(12):
        optimum = Landscape(rack.slots(), seed, interaction=0.2).best(budget)
        for is_refined in regret:
            evaluate = Landscape(rack.slots(), seed, interaction=0.2)
            found = best(Beam(refine=is_refined).search(rack, budget, evaluate)).score
            regret[is_refined] += optimum - found
            n_scored[is_refined] += len(evaluate.asked)
    assert regret[True] < regret[False] / 3
    assert n_scored[True] < n_scored[False] * 1.4


def test_a_large_search_asks_for_few_of_all_placements():
    rack = space(28, FOUR)
    evaluate = Landscape(rack.slots(), interaction=0.3)
    rounds = Beam().search(rack, 8, evaluate)
    assert best(rounds).placement.count("attention") == 8
    assert len(evaluate.asked) < 20_000


def test_growth_adds_one_dear_layer_a_round_to_exactly_the_budget():
    rack = space(6)
    rounds = Beam(refine=False).search(rack, 3, Landscape(rack.slots()))
    counts = [{candidate.placement.count("attention") for candidate in scored} for scored in rounds]
    assert counts == [{0}, {1}, {2}, {3}]
    assert [scored[0].is_admitted for scored in rounds] == [False, False, False, True]


def test_the_widths_bound_how_many_are_grown():
    rack = space(8)
    rounds = Beam(width=2, initial_width=3, refine=False).search(rack, 3, Landscape(rack.slots()))
    # 8 alone; 3 of them grow by 7 others, less 3 pairs met twice; 2 of those by 6, less the triples met twice.
    assert [len(scored) for scored in rounds][:3] == [1, 8, 18]
    assert 11 <= len(rounds[3]) <= 12


def test_growth_stops_where_nothing_is_gained():
    rack = space(6)
    worse = Beam(refine=False).search(rack, {}, lambda placements: [-placement.count("attention") for placement in placements])
    assert len(worse) == 2
    better = Beam(refine=False).search(rack, {}, lambda placements: [placement.count("attention") for placement in placements])
    assert len(better) == 7


def test_an_early_stop_asks_for_more_gain():
    rack = space(6)

    def evaluate(placements):
        return [10 + 0.1 * placement.count("attention") for placement in placements]

    assert len(Beam(refine=False).search(rack, {}, evaluate)) == 7
    assert len(Beam(refine=False, early_stop=0.05).search(rack, {}, evaluate)) == 2
    # What the budget asks for is not stopped short of.
    exact = Beam(refine=False, early_stop=0.05).search(rack, 3, evaluate)
    assert best(exact).placement.count("attention") == 3


def test_a_later_phase_starts_from_the_whole_beam():
    rack = space(4, THREE)
    good = ("window", "attention", "linear", "linear")

    def evaluate(placements):
        scores = {("linear", "attention", "linear", "linear"): 1.0, ("attention", "linear", "linear", "linear"): 2.0, good: 9.0}
        return [scores.get(placement, 0.0) for placement in placements]

    budget = Budget.of({"attention": 1, "window": 1}, rack)
    assert best(Beam(refine=False).search(rack, budget, evaluate)).placement == good


def test_the_order_of_phases_can_be_given():
    rack = space(4, THREE)
    rounds = Beam(order=("window", "linear", "attention"), refine=False).search(rack, {"window": 2}, Landscape(rack.slots()))
    assert rounds[0][0].placement == ("attention",) * 4
    assert "window" in rounds[1][0].placement


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("attention", "lineal"), "order: no layer has 'lineal'; did you mean 'linear'"),
        (("attention",), "order: expected each of these names once: attention, linear"),
        (("attention", "linear", "linear"), "expected each of these names once"),
    ],
)
def test_an_order_has_every_name_once(order, message):
    with pytest.raises(ConfigError, match=message):
        Beam(order=order).search(space(), 2, Landscape(space().slots()))


@pytest.mark.parametrize("value", [{"attention": 2, "gdn": "<=1", "wide": ">=1"}, {"kv_bytes": "60%", "none": 1, "linear": 2}])
def test_growth_follows_exactly_the_codes_that_can_be_completed(value):
    """Beside looking at every completion."""
    rack = mixed_space()
    budget = Budget.of(value, rack)
    order = budget.costs.by_cost()
    growth = Growth(budget, order)
    codes = budget.coding.encode(everything(rack.slots()))
    admitted = codes[budget.admits_all(codes)]
    states = codes[:: max(1, len(codes) // 200)]
    for phase in range(len(order) + 1):
        later = [budget.coding.number[name] for name in order[phase:]]
        expected = []
        for state in states:
            free = state == growth.start
            is_open = np.isin(admitted, later) | (admitted == growth.start)
            expected.append(bool(np.where(free, is_open, admitted == state).all(1).any()))
        assert growth.can_be_met(states, phase).tolist() == expected


def test_neighbours_are_all_swaps_and_replacements_within_the_budget():
    rack = mixed_space()
    budget = Budget.of({"attention": "1..2", "pin": {0: "linear"}}, rack)
    codes = budget.coding.encode(everything(rack.slots()))
    admitted = {code.tobytes(): code for code in codes[budget.admits_all(codes)]}
    code = next(iter(admitted.values()))
    expected = set()
    for key, other in admitted.items():
        changed = np.flatnonzero(other != code)
        is_swap = len(changed) == 2 and other[changed[0]] == code[changed[1]] and other[changed[1]] == code[changed[0]]
        if len(changed) == 1 or is_swap:
            expected.add(key)
    found = [neighbour.tobytes() for neighbour in near(budget, code)]
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_relocation_helps_where_swaps_and_replacements_do_not():
    rack = space(3, THREE)
    budget = Budget.of({"attention": 1}, rack)
    coding = budget.coding
    # Attention should go from the first slot to the second, and window to the first: not a swap, and not two replacements.
    values = {("attention", "linear", "linear"): 1.0, ("window", "attention", "linear"): 2.0}
    start = coding.encode([("attention", "linear", "linear")])[0]
    questions = refine(budget, start, 1.0)
    asked = [next(questions).placements]
    for _ in range(3):
        asked.append(questions.send([values.get(placement, 0.0) for placement in asked[-1]]).placements)
    with pytest.raises(StopIteration) as end:
        questions.send([0.0] * len(asked[-1]))
    code, score = end.value.value
    assert coding.decode(code[None]) == [("window", "attention", "linear")]
    assert score == 2.0
    assert [("window", "attention", "linear") in placements for placements in asked] == [False, True, False, False]


def test_relocations_are_not_what_two_replacements_can_do():
    rack = space(4, THREE)
    code = Budget.of({}, rack).coding.encode([("attention", "window", "linear", "linear")])[0]
    assert len(far(Budget.of({}, rack), code)) == 0
    relocated = far(Budget.of({"attention": 1}, rack), code)
    assert len(relocated) == len(np.unique(relocated, axis=0)) == 3
    assert (ConstraintRow(np.eye(3)[[0] * 4] * 1.0, 1, 1).total(relocated) == 1).all()


def test_channel_mixers_are_searched_too():
    rack = space(3, ("attention", "linear"), CHOICE_OF_WIDTHS)
    budget = Budget.of({"attention": 1, "none": 1, "wide": "<=1"}, rack)
    evaluate = Landscape(rack.slots(), 3, interaction=0.2)
    rounds = Beam(width=50, initial_width=50).search(rack, budget, evaluate)
    assert best(rounds).score == pytest.approx(evaluate.best(budget))
    assert len({candidate.placement for candidate in candidates(rounds)}) == len(evaluate.asked)


def test_growth_asks_few_integer_programs_where_a_relative_is_completed_alike(monkeypatch):
    class Measured:
        def of_space(self, *_):
            milliseconds = np.array([3.1, 1.7, 2.2, 1.0]) + 0.1 * np.random.default_rng(1).random((16, 4))
            return 1.2, [dict(zip(FOUR, row, strict=True)) for row in milliseconds]

    rack, asked = space(16, FOUR), []
    budget = Budget.of({"attention": 5, "latency_ms": 33.0}, rack, latency=Measured())
    solve = Budget.solve
    monkeypatch.setattr(Budget, "solve", lambda self, *args, **keys: asked.append(1) or solve(self, *args, **keys))
    rounds = Beam(width=4, refine=False).search(rack, budget, Landscape(rack.slots(), 1))
    assert best(rounds).is_admitted
    assert len(asked) < 20
