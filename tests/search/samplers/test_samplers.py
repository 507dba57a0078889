"""The contract of samplers, and what each kind draws how often."""

import math
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from configs import ConfigError
from models.spec.placement import Slot, check_placement
from search.budget import Budget
from search.samplers import SAMPLERS
from search.samplers.shared.sampler import alike, generator, placements_of_step
from tests.search.landscapes import mixed_space, space

THREE = ("attention", "window", "linear")
EVEN = dict.fromkeys(("attention", "window", "gdn", "linear", "wide", "narrow", "none"), 1)
OPTIONS = {
    "weighted": [{"weights": EVEN | {"linear": 3.5}}, {"weights": EVEN | {0: {"attention": 0.3, "linear": 0.7}}}],
    "fixed": [{"placements": {"all:linear": 0.25, "all:none": 0.25}, "remainder": "uniform"}],
    "sandwich": [{}, {"n": 3, "between": "composition", "context": 64}],
    "within_budget": [{"budget": {"attention": 2, "kv_bytes": "80%"}}, {"budget": {"attention": 3, "pin": {0: "attention"}}}],
    "schedule": [
        {"first": "uniform", "then": "composition", "start": 20, "end": 80},
        {"first": {"kind": "sandwich", "n": 2}, "then": {"kind": "sandwich", "n": 2, "between": "balanced"}, "end": 50},
    ],
}
CASES = [pytest.param({"kind": kind, **options}, id=f"{kind} {number}")
         for kind in SAMPLERS for number, options in enumerate(OPTIONS.get(kind, [{}]))]  # fmt: skip


def sampler(options, rack=None):
    rack = rack or mixed_space()
    return SAMPLERS.build(SAMPLERS.part(options), slots=rack.slots(), space=rack)


def steps(drawing, n, seed=0):
    return [placements_of_step(drawing, seed, step) for step in range(n)]


@pytest.mark.parametrize("options", CASES)
def test_draws_fit_the_slots(options):
    drawing = sampler(options)
    for placements in steps(drawing, 20):
        assert len(placements) == drawing.n_per_step
        for placement in placements:
            assert check_placement(placement, mixed_space().slots()) == placement
            assert all(type(name) is str for name in placement)


@pytest.mark.parametrize("options", CASES)
def test_ranks_agree_and_a_resumed_run_goes_on_with_the_same(options):
    """A draw depends on nothing that was drawn before."""
    drawn = steps(sampler(options), 40)
    other = sampler(options)
    assert [placements_of_step(other, 0, step) for step in reversed(range(40))] == drawn[::-1]


@pytest.mark.parametrize("options", CASES)
def test_neighbouring_seeds_are_no_shifted_copies(options):
    drawing, n = sampler(options), 60
    first, second = (np.array([placements[-1] for placements in steps(drawing, n, seed)]) for seed in (6, 7))
    assert (first != second).any()
    for shift in range(-3, 4):
        one, other = first[max(0, shift) : n + min(0, shift)], second[max(0, -shift) : n - max(0, shift)]
        assert (one == other).all(1).mean() < 0.5


@pytest.mark.parametrize("options", CASES)
def test_draws_of_a_step_differ_from_those_of_others(options):
    drawing = sampler(options)
    step = placements_of_step(drawing, 0, 3, n=8)
    assert len(step) == 8 * drawing.n_per_step
    assert len(set(step)) > 1


@pytest.mark.parametrize("options", CASES)
def test_shares_are_what_is_drawn(options):
    drawing, n = sampler(options), 1200
    shares = drawing.shares()
    if shares is None:
        assert options["kind"] in ("sandwich", "schedule")
        return
    drawn = np.array([drawing.draw(0, step) for step in range(n)])
    for index, slot in enumerate(mixed_space().slots()):
        assert sum(shares[index].values()) == pytest.approx(1)
        for name in slot.names:
            assert (drawn[:, index] == name).mean() == pytest.approx(shares[index][name], abs=5 * 0.5 / math.sqrt(n))


@pytest.mark.parametrize("options", CASES)
def test_a_spec_is_the_same_when_it_is_read_again(options):
    part = SAMPLERS.part(options)
    assert SAMPLERS.part(part.to_dict()) == part


def test_a_generator_is_the_same_on_every_machine():
    """Frozen: runs that go on, and ranks on other machines, depend on it."""
    assert generator("uniform", 0, 0).integers(1000, size=4).tolist() == [466, 12, 34, 279]
    assert sampler("uniform", space(6, THREE)).draw(0, 0) == ("attention", "window", "window", "linear", "window", "linear")


def test_counters_do_not_run_into_each_other():
    keys = (("a", 1, 11), ("a", 11, 1), ("a", 111), ("a1", 11), ("a", "1", 11))
    assert len({generator(*counters).integers(2**62) for counters in keys}) == 5


def test_uniform_is_uniform():
    drawing = sampler("uniform", space(2, THREE))
    counts = Counter(drawing.draw(1, step) for step in range(4500))
    assert len(counts) == 9
    assert max(abs(count - 500) for count in counts.values()) < 5 * math.sqrt(500)


def test_weights_are_those_given_and_may_be_a_layers_own():
    drawing = sampler({"kind": "weighted", "weights": {"attention": 1, "linear": 3, 1: {"attention": 0, "linear": 2}}}, space(3))
    drawn = np.array([drawing.draw(0, step) for step in range(4000)])
    shares = (drawn == "attention").mean(0)
    assert shares[1] == 0
    assert shares[[0, 2]] == pytest.approx([0.25, 0.25], abs=0.03)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"attention": 1}, "weights: layer 0 has no weight for linear; 0 leaves a name out"),
        ({"attention": 0, "linear": 0}, "weights: all names of layer 0 have weight 0"),
        ({"attention": 1, "linear": 1, "lineal": 1}, "weights: no layer has 'lineal'; did you mean 'linear'"),
        ({"attention": 1, "linear": 1, 7: {"attention": 1, "linear": 1}}, "weights: there is no searchable layer '7'"),
        ({"attention": 1, "linear": 1, 0: {"attention": 1}}, "weights: layer 0 has no weight for linear"),
        ({"attention": 1, "linear": 1, 0: {"attention": 1, "linear": 1, "gdn": 1}}, "weights: layer 0 has no 'gdn'"),
        ({}, "weights: layer 0 has no weight for attention, linear"),
    ],
)
def test_weights_name_everything_once(weights, message):
    with pytest.raises(ConfigError, match=message):
        sampler({"kind": "weighted", "weights": weights}, space(2))


REQUIRED = {"weighted": "weights", "fixed": "placements", "within_budget": "budget", "schedule": "end"}


@pytest.mark.parametrize(("kind", "option"), REQUIRED.items())
def test_what_a_sampler_needs_is_required(kind, option):
    """Weights that nobody gave were once accepted, and meant uniform."""
    with pytest.raises(ValueError, match=f"(?s){option}.*required, but not given|{option}.*Field required"):
        SAMPLERS.part({"kind": kind})


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        SAMPLERS.part({"kind": "weighted", "weights": {"attention": -1}})


def test_composition_draws_every_composition_alike():
    drawing, n = sampler("composition", space(4, THREE)), 6000
    counts = Counter(tuple(drawing.draw(3, step).count(name) for name in THREE) for step in range(n))
    assert len(counts) == math.comb(6, 2)
    assert max(abs(count - n / 15) for count in counts.values()) < 5 * math.sqrt(n / 15)


def test_composition_orders_at_random():
    drawing = sampler("composition", space(3))
    orders = Counter(placement for step in range(4000) if (placement := drawing.draw(0, step)).count("attention") == 1)
    assert len(orders) == 3
    assert max(orders.values()) < 1.25 * min(orders.values())


def test_composition_reaches_all_attention_in_48_layers_of_4_mixers():
    """With probability 1 / 20,825; uniform would 1 time in 10^29. Seen by how many have at least 40 layers of it."""
    slots = tuple(Slot(layer, "mixer", ("attention", "window", "gdn", "linear"), "attention") for layer in range(48))
    drawing = SAMPLERS["composition"](slots)
    assert math.comb(51, 3) == 20_825
    n = 3000
    # With k layers of attention left over for the three others there are comb(k + 2, 2) compositions.
    expected = n * sum(math.comb(rest + 2, 2) for rest in range(9)) / 20_825
    found = sum(drawing.draw(0, step).count("attention") >= 40 for step in range(n))
    assert found == pytest.approx(expected, abs=5 * math.sqrt(expected))
    assert not any(SAMPLERS["uniform"](slots).draw(0, step).count("attention") >= 40 for step in range(300))


def test_composition_draws_all_attention_as_often_as_it_should():
    slots = tuple(Slot(layer, "mixer", ("attention", "window", "gdn", "linear"), "attention") for layer in range(16))
    drawing, n = SAMPLERS["composition"](slots), 10_000
    found = sum(len(set(drawing.draw(0, step))) == 1 for step in range(n))
    expected = 4 * n / math.comb(19, 3)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected))


def test_slots_that_offer_different_names_are_shared_out_by_themselves():
    groups = alike(mixed_space().slots())
    assert groups == [[0, 2, 4], [1, 3, 5], [6, 7]]
    drawing = sampler("composition")
    counts = Counter(sum(drawing.draw(0, step)[index] == "attention" for index in groups[0]) for step in range(2000))
    assert max(abs(counts[count] - 500) for count in range(4)) < 5 * math.sqrt(500)


def test_fixed_draws_what_is_listed_and_the_rest_elsewhere():
    options = {"kind": "fixed", "placements": {"all:linear": 0.5, "attention, linear*2": 0.2}, "remainder": "uniform"}
    drawing, n = sampler(options, space(3)), 4000
    counts = Counter(drawing.draw(0, step) for step in range(n))
    assert counts[("linear",) * 3] / n == pytest.approx(0.5 + 0.3 / 8, abs=0.03)
    assert counts["attention", "linear", "linear"] / n == pytest.approx(0.2 + 0.3 / 8, abs=0.03)
    assert len(counts) == 8
    alone = sampler({"kind": "fixed", "placements": {"all:linear": 0.7, "all:attention": 0.3}}, space(3))
    assert Counter(alone.draw(0, step)[0] for step in range(1000))["linear"] == pytest.approx(700, abs=70)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placements": {}}, "placements: none is listed"),
        ({"placements": {"all:linear": 1.2}}, "the probabilities add up to 1.2, more than 1"),
        ({"placements": {"all:linear": 0.7}}, "the probabilities add up to 0.7; give a remainder"),
        ({"placements": {"all:linear": 1}, "remainder": "uniform"}, "remainder: nothing is left for it"),
        ({"placements": {"all:lineal": 1}}, "no slot has 'lineal'"),
        ({"placements": {"all:linear": 0.5}, "remainder": "sandwich"}, "remainder: a sampler that draws 4 placements a step"),
    ],
)
def test_fixed_must_add_up(options, message):
    with pytest.raises(ConfigError, match=message):
        sampler({"kind": "fixed", **options}, space(3))


@pytest.mark.parametrize("index", [0, 1])
def test_balanced_has_every_name_once_in_each_block(index):
    drawing = sampler("balanced")
    drawn = np.array([drawing.draw(5, step, index) for step in range(180)])
    for place, slot in enumerate(mixed_space().slots()):
        size = len(slot.names)
        blocks = drawn[:, place].reshape(-1, size)
        assert all(sorted(block) == sorted(slot.names) for block in blocks)
        assert len({tuple(block) for block in blocks}) == math.factorial(size)


def test_balanced_slots_have_orders_of_their_own():
    drawing = sampler("balanced", space(12, THREE))
    assert all(len(set(drawing.draw(0, step))) > 1 for step in range(6))


def test_a_sandwich_has_both_ends_in_every_step():
    drawing = sampler({"kind": "sandwich", "n": 2})
    assert drawing.n_per_step == 4
    cheapest = ("linear", "none", "linear", "none", "linear", "none", "gdn", "gdn")
    dearest = ("attention", "wide", "attention", "wide", "attention", "wide", "attention", "attention")
    for placements in steps(drawing, 5):
        assert placements[:2] == (cheapest, dearest)
    assert len({placement for placements in steps(drawing, 5) for placement in placements[2:]}) > 7
    two = placements_of_step(drawing, 0, 0, n=2)
    assert two[0] == two[4] == cheapest
    assert two[2] != two[6]


def test_within_budget_draws_nothing_else():
    value = {"attention": "1..2", "kv_bytes": "70%", "forbid": {0: "linear"}}
    rack = space(5, THREE)
    drawing, budget = sampler({"kind": "within_budget", "budget": value}, rack), Budget.of(value, rack)
    drawn = {drawing.draw(0, step) for step in range(2000)}
    assert drawn == {placement for placement in product(THREE, repeat=5) if budget.admits(placement)}
    with pytest.raises(ConfigError, match="attention = 9 cannot be met"):
        sampler({"kind": "within_budget", "budget": 9}, rack)


LINEAR, ATTENTION = ({"kind": "fixed", "placements": {f"all:{name}": 1}} for name in ("linear", "attention"))


def test_a_schedule_goes_from_one_to_the_other():
    gradual = sampler({"kind": "schedule", "first": LINEAR, "then": ATTENTION, "start": 1000, "end": 5000}, space(2))
    late = np.array([gradual.draw(0, step)[0] == "attention" for step in range(6000)])
    assert not late[:1000].any()
    assert late[5000:].all()
    shares = late[1000:5000].reshape(4, -1).mean(1)
    assert shares == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=0.06)
    switch = sampler({"kind": "schedule", "first": LINEAR, "then": ATTENTION, "start": 10, "end": 10}, space(2))
    assert [switch.draw(0, step)[0] for step in range(8, 12)] == ["linear", "linear", "attention", "attention"]


def test_schedules_in_schedules_decide_by_themselves():
    inner = {"kind": "schedule", "first": LINEAR, "then": ATTENTION, "end": 2001}
    outer = sampler({"kind": "schedule", "first": inner, "then": LINEAR, "end": 2000}, space(1))
    middle = [outer.draw(0, step)[0] for step in range(900, 1100)]
    assert middle.count("attention") == pytest.approx(50, abs=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 5, "end": 4}, "start = 5 lies after end = 4"),
        ({"first": "sandwich", "end": 4}, r"first draws 4 placement\(s\) a step and then 1"),
        ({"first": None, "end": 4}, "first: required, a sampler"),
    ],
)
def test_a_schedule_must_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        sampler({"kind": "schedule", "first": "uniform", "then": "composition", **options}, space(2))


def test_steps_are_independent():
    drawn = [placements[0] for placements in steps(sampler("uniform", space(12)), 400)]
    same = np.mean([[one == other for one, other in zip(*pair, strict=True)] for pair in pairwise(drawn)])
    assert same == pytest.approx(0.5, abs=0.04)


def test_a_fixed_in_a_fixed_decides_by_itself():
    inner = {"kind": "fixed", "placements": {"all:linear": 0.5}, "remainder": "uniform"}
    drawing = sampler({"kind": "fixed", "placements": {"all:attention": 0.5}, "remainder": inner}, space(8))
    counts = Counter(drawing.draw(0, step) for step in range(2000))
    assert counts[("linear",) * 8] == pytest.approx(500, abs=100)
