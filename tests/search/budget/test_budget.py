"""Budgets: every form, what they admit beside adding it up, and what is said about those that cannot be."""

import numpy as np
import pytest

from configs import ConfigError
from models import RackSpec
from search.budget import Budget
from search.budget.admitted import Admitted
from search.budget.program import ConstraintRow, solve
from tests.search.landscapes import CHOICE_OF_WIDTHS, MIXERS, everything, mixed_space, space, stack

THREE = ("attention", "window", "linear")
ALL_MAIN = 4 * 2 * 2 * 16 * 1024  # kv_bytes: layers, keys and values, bytes a number, numbers, positions


def admitted(value, rack):
    """By looking at everything."""
    budget = Budget.of(value, rack)
    return [placement for placement in everything(rack.slots()) if budget.admits(placement)]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (2, lambda p: p.count("attention") == 2),
        (0, lambda p: p.count("attention") == 0),
        ({}, lambda _: True),
        ({"attention": 2}, lambda p: p.count("attention") == 2),
        ({"attention": "2"}, lambda p: p.count("attention") == 2),
        ({"window": "<=1"}, lambda p: p.count("window") <= 1),
        ({"window": ">= 3"}, lambda p: p.count("window") >= 3),
        ({"attention": "1..2", "linear": 1}, lambda p: 1 <= p.count("attention") <= 2 and p.count("linear") == 1),
        ({"attention": "1 .."}, lambda p: p.count("attention") >= 1),
        ({"attention": "..1"}, lambda p: p.count("attention") <= 1),
        ({"pin": {0: "attention", "3": "linear"}}, lambda p: p[0] == "attention" and p[3] == "linear"),
        ({"pin": {"0.mixer": "window"}}, lambda p: p[0] == "window"),
        ({"forbid": {3: ["linear", "window"], 0: "attention"}}, lambda p: p[3] == "attention" and p[0] != "attention"),
        ({"attention": 1, "pin": {2: "attention"}}, lambda p: p.count("attention") == 1 and p[2] == "attention"),
        # A window of 32 keeps 32 positions where attention keeps all 1024.
        ({"kv_bytes": ALL_MAIN}, lambda _: True),
        ({"kv_bytes": "100%"}, lambda _: True),
        ({"kv_bytes": ALL_MAIN - 1}, lambda p: p.count("attention") < 4),
        ({"kv_bytes": "50%"}, lambda p: p.count("attention") * 32 + p.count("window") <= 2 * 32),
        ({"kv_bytes": f"{ALL_MAIN // 2}..{ALL_MAIN}"}, lambda p: p.count("attention") * 32 + p.count("window") >= 2 * 32),
        ({"kv_bytes": "25%..50%"}, lambda p: 32 <= p.count("attention") * 32 + p.count("window") <= 2 * 32),
        ({"kv_bytes": 512, "context": 8}, lambda p: p.count("attention") + p.count("window") <= 1),
        ({"kv_bytes": 512, "context": 8, "dtype": "fp8"}, lambda p: p.count("attention") + p.count("window") <= 2),
        ({"state_bytes": 4 * (2 * 8 * 8 + 2 * 8)}, lambda p: p.count("linear") <= 1),
        ({"params": "100%"}, lambda _: True),
        ({"flops": "99%"}, lambda p: p.count("attention") < 4),
        (
            {"kv_bytes": "50%", "attention": ">=1"},
            lambda p: 32 <= p.count("attention") * 32 + p.count("window") <= 64 and p.count("attention") >= 1,
        ),
    ],
)
def test_a_budget_admits_what_it_says(value, rule):
    rack = space(4, THREE)
    expected = [placement for placement in everything(rack.slots()) if rule(placement)]
    assert admitted(value, rack) == expected
    assert expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"attention": 9}, r"^budget: attention = 9 cannot be met: the nearest that can is 6 \(the most\)$"),
        (9, r"^budget: attention = 9 cannot be met: the nearest that can is 6 \(the most\)$"),
        ({"attention": ">=7"}, r"attention >= 7 cannot be met: the nearest that can is 6"),
        ({"kv_bytes": 0}, r"^budget: kv_bytes <= 0 cannot be a limit: the nearest that can is 2,048; to go without, all"),
        ({"kv_bytes": 0, "forbid": {0: "linear"}}, r"^budget: kv_bytes <= 0 cannot be met: the nearest that can is 2,048$"),
        ({"params": "10%"}, r"params <= 1,\d\d\d\.?\d* cannot be met: the nearest that can is \d\d,\d\d\d \(the least\)"),
        ({"kv_bytes": "2049..4000"}, r"kv_bytes 2,049..4,000 cannot be met: the nearest that can is 2,048 or 4,096 \(nothing"),
        ({"attention": 4, "window": 4}, r"attention = 4 cannot be met beside window = 4: the nearest that can is 2 \(the most\)"),
        ({"attention": 1, "window": 1, "linear": 3}, r"attention = 1 cannot be met beside window = 1 and linear = 3: .* is 2 "),
        (
            {"kv_bytes": "30%", "window": "<=2", "attention": 3},
            r"kv_bytes <= 117,965 cannot .* beside attention = 3: .* 196,608 ",
        ),
        (
            {"attention": "<=2", "pin": {0: "attention", 1: "attention", 4: "attention"}},
            r"<= 2 cannot .* is 3 .* \(pinned: 0: att.*, 4: attention\)$",
        ),
        ({"linear": 6, "pin": {0: "attention"}}, r"linear = 6 cannot be met: the nearest that can is 5 \(the most\) \(pinned: 0"),
        ({"pin": {0: "attention", "0": "linear"}}, r"^budget: pin: layer 0 is pinned to 'attention' and to 'linear'$"),
        ({"pin": {0: "linear"}, "forbid": {0: "linear"}}, r"^budget: pin and forbid: layer 0 is pinned to 'linear', "),
        ({"forbid": {0: list(THREE)}}, r"^budget: forbid: nothing is left for layer 0: it offers attention, window, linear$"),
        ({"pin": {6: "attention"}}, r"^budget: pin: there is no searchable layer '6'; known: 0, 1, 2, 3, 4, 5$"),
        ({"pin": {"0.mlp": "wide"}}, r"pin: there is no searchable layer '0.mlp'"),
        ({"pin": {0: "atention"}}, r"^budget: pin: layer 0 has no 'atention'; did you mean 'attention'"),
        ({"forbid": {0: ["lineal"]}}, r"^budget: forbid: layer 0 has no 'lineal'; did you mean 'linear'"),
        ({"atention": 2}, r"^budget: unknown key 'atention'; did you mean 'attention'\? Known: attention, context, dtype"),
        ({"kv_byte": 2}, r"^budget: unknown key 'kv_byte'; did you mean 'kv_bytes'"),
        ({3: 2}, r"^budget: unknown key '3'; Known"),
        ({"attention": -1}, r"^budget: attention: -1: expected 2 \(exactly\), '<=2', '>=2' or '1..3'$"),
        ({"attention": True}, r"attention: True: expected 2 \(exactly\)"),
        ({"attention": 1.5}, r"attention: 1.5: layers are counted in whole numbers"),
        ({"attention": "50%"}, r"attention: '50%': a share is for costs"),
        ({"attention": None}, r"attention: None: expected 2"),
        ({"kv_bytes": ">=1e400"}, r"kv_bytes: '>=1e400': that is beyond all numbers"),
        ({"kv_bytes": "1..1e400%"}, r"kv_bytes: '1..1e400%': that is beyond all numbers"),
        ({"attention": "3..2"}, r"attention: '3..2': the range is empty"),
        ({"kv_bytes": "much"}, r"kv_bytes: 'much': expected a number \(at most\), '60%' of the all-main rack"),
        ({"kv_bytes": ".."}, r"kv_bytes: '..': expected a number"),
        ({"latency_ms": 2}, r"latency_ms: needs a table that `python -m search profile` measured"),
        ({"context": 0}, r"^budget: context: 0: expected a number of positions, at least 1$"),
        ({"context": "8k"}, r"^budget: context: '8k': expected a number"),
        ({"dtype": "bf32"}, r"dtype: unknown 'bf32'; did you mean 'fp32'"),
        ({"pin": [0]}, r"^budget: pin: \[0\]: expected a mapping such as \{0: attention\}$"),
        ({"forbid": {0: None}}, r"^budget: forbid: 0: None: expected names$"),
        ("4", r"^budget: '4': expected a number of layers, or a mapping of limits$"),
        (True, r"^budget: True: expected a number of layers"),
    ],
)
def test_a_budget_that_cannot_be_is_one_message(value, message):
    with pytest.raises(ConfigError, match=message) as error:
        Budget.of(value, space(6, THREE))
    assert "\n" not in str(error.value)


def test_the_nearest_that_is_named_can_be_met():
    rack = space(6, THREE)
    for value in ({"attention": 6}, {"kv_bytes": 2048, "forbid": {0: "linear"}}, {"attention": 2, "window": 4}):
        assert Budget.of(value, rack).solve() is not None
    with pytest.raises(ConfigError, match="params <= 9,000 cannot be met: the nearest that can is ") as error:
        Budget.of({"params": 9000}, rack)
    least = int(str(error.value).split()[-3].replace(",", ""))
    assert Budget.of({"params": least}, rack).solve() is not None
    with pytest.raises(ConfigError, match="cannot be met"):
        Budget.of({"params": least - 1}, rack)


def test_a_cost_of_nothing_is_refused_where_there_is_nothing_too():
    with pytest.raises(ConfigError, match="kv_bytes <= 0 cannot be a limit: no placement of this space has any"):
        Budget.of({"kv_bytes": 0}, space(3, ("linear", "gdn")))


def test_what_is_outside_of_the_slots_counts():
    fixed = {"n_blocks": 1, "block": {"mixer": MIXERS["attention"]}}
    rack = RackSpec(d_model=16, vocab_size=32, stacks=[fixed, stack(2, ("attention", "linear"))])
    assert admitted({"kv_bytes": ALL_MAIN // 4}, rack) == [("linear", "linear")]
    with pytest.raises(ConfigError, match="kv_bytes <= 1,000 cannot be met: the nearest that can is 65,536"):
        Budget.of({"kv_bytes": 1000}, rack)
    with pytest.raises(ConfigError, match="kv_bytes <= 0 cannot be met: the nearest that can is 65,536"):
        Budget.of({"kv_bytes": 0}, rack)
    # Pins count layers of the rack, not slots.
    assert admitted({"pin": {2: "attention"}, "attention": 1}, rack) == [("linear", "attention")]


def test_a_number_means_the_main_mixer():
    assert Budget.of(1, space(3, ("linear", "attention"))).text() == "linear = 1"
    two = RackSpec(d_model=16, vocab_size=32, stacks=[stack(1, ("attention", "linear")), stack(1, ("linear", "attention"))])
    with pytest.raises(ConfigError, match="several: attention, linear; name one"):
        Budget.of(1, two)
    widths = {"n_blocks": 2, "block": {"mixer": MIXERS["attention"], "mlp": CHOICE_OF_WIDTHS}}
    assert Budget.of(1, RackSpec(d_model=16, vocab_size=32, stacks=[widths])).text() == "wide = 1"


def test_a_rack_without_a_choice_has_no_budget():
    with pytest.raises(ConfigError, match="the rack has no searchable layer"):
        Budget.of({}, space(2).place("all:linear"))


def test_channel_mixers_have_limits_and_pins_too():
    rack = mixed_space()
    budget = Budget.of({"wide": 1, "pin": {"2.mlp": "none"}, "forbid": {5: "window"}}, rack)
    assert budget.admits(("linear", "wide", "linear", "narrow", "linear", "none", "gdn", "gdn"))
    assert not budget.admits(("linear", "wide", "linear", "narrow", "linear", "narrow", "gdn", "gdn"))
    assert not budget.admits(("linear", "wide", "linear", "wide", "linear", "none", "gdn", "gdn"))
    assert not budget.admits(("linear", "wide", "linear", "narrow", "linear", "none", "gdn", "window"))
    assert budget.text() == "wide = 1, pin 2.mlp: none, forbid 5: window"


def test_a_budget_of_a_budget_is_itself_and_the_context_is_a_default():
    rack = space(3)
    budget = Budget.of({"kv_bytes": "50%"}, rack, context=64)
    assert Budget.of(budget, rack) is budget
    assert budget.costs.context == 64
    assert Budget.of({"kv_bytes": "50%", "context": 32}, rack, context=64).costs.context == 32
    assert budget.text() == "kv_bytes <= 6,144"


def test_latency_is_a_limit_where_it_was_measured():
    class Measured:
        def of_space(self, space, context):
            assert context == 1024
            return 1.0, [{"attention": 0.5 + 0.1 * index, "linear": 0.25} for index in range(len(space.slots()))]

    budget = Budget.of({"latency_ms": 2.4, "attention": 1}, space(4), latency=Measured())
    one_attention = [tuple("attention" if index == chosen else "linear" for index in range(4)) for chosen in range(4)]
    # 1 outside, 3 * 0.25 for linear, and 0.5 to 0.8 for attention.
    assert [budget.admits(placement) for placement in one_attention] == [True, True, False, False]
    with pytest.raises(ConfigError, match=r"latency_ms <= 1 cannot be met: the nearest that can is 2 \(the least\)"):
        Budget.of({"latency_ms": 1}, space(4), latency=Measured())


@pytest.mark.parametrize("seed", range(6))
def test_the_integer_program_is_looking_at_everything(seed):
    random = np.random.default_rng(seed)
    allowed = random.random((5, 3)) < 0.8
    allowed[np.arange(5), random.integers(3, size=5)] = True
    objective = random.normal(size=(5, 3))
    codes = np.array(np.meshgrid(*(np.flatnonzero(row) for row in allowed))).reshape(5, -1).T
    whole, real = random.integers(0, 9, (5, 3)) * 1000.0, random.random((5, 3))
    for low, high in ((0, 12_000), (9_000, 14_000), (17_500, 17_999), (20_000, np.inf)):
        rows = [
            ConstraintRow(whole, low, high),
            ConstraintRow(real, 0.5, 2.5),
            ConstraintRow(np.eye(3)[[0] * 5].astype(float), 1, 2),
        ]
        within = np.all([row.admits(codes) for row in rows], axis=0)
        found = solve(objective, allowed, rows)
        assert (found is not None) == within.any()
        if found is not None:
            assert all(row.admits(found) for row in rows)
            scores = objective[np.arange(5), codes[within]].sum(1)
            assert objective[np.arange(5), found].sum() == pytest.approx(scores.max())


def test_a_byte_too_few_is_too_few_for_the_integer_program():
    """Its tolerance is 1e-6, one byte of 64k positions of cache is less."""
    rack = space(6)
    exact = 3 * 2 * 16 * 2 * 65536
    assert Budget.of({"kv_bytes": exact, "attention": 3, "context": 65536}, rack).solve() is not None
    with pytest.raises(ConfigError, match=r"kv_bytes <= 12,582,911 cannot be met beside attention = 3: .* is 12,582,912 "):
        Budget.of({"kv_bytes": exact - 1, "attention": 3, "context": 65536}, rack)


def test_the_nearest_placement_keeps_what_it_can():
    rack = space(4, THREE)
    budget = Budget.of({"attention": 1, "pin": {3: "linear"}}, rack)
    assert budget.nearest(("window", "window", "attention", "linear")) == ("window", "window", "attention", "linear")
    moved = budget.nearest(("attention", "window", "attention", "window"))
    assert budget.admits(moved)
    assert moved[1] == "window"
    assert moved[3] == "linear"


@pytest.mark.parametrize("value", [{"attention": 2, "window": "<=1"}, {"kv_bytes": "40%"}, {"linear": 1, "pin": {0: "window"}}])
def test_draws_cover_the_admitted_counts_alike(value):
    rack = space(4, THREE)
    draws, random = Admitted(Budget.of(value, rack)), np.random.default_rng(0)
    drawn = [draws.draw(random) for _ in range(3000)]
    assert set(drawn) == set(admitted(value, rack))
    pins = value.get("pin", {})
    counts = [tuple(p[len(pins) :].count(name) for name in THREE) for p in drawn]
    kinds = sorted(set(counts))
    frequencies = np.array([counts.count(kind) for kind in kinds]) / len(drawn)
    assert np.abs(frequencies - 1 / len(kinds)).max() < 5 * np.sqrt(0.25 / len(drawn))
    for index, shares in enumerate(draws.shares()):
        for name, share in shares.items():
            assert np.mean([placement[index] == name for placement in drawn]) == pytest.approx(share, abs=0.04)


def test_draws_where_the_counts_are_too_many_to_list(monkeypatch):
    monkeypatch.setattr("search.budget.admitted.MOST_LISTED", 1)
    rack = space(3, THREE)
    value = {"kv_bytes": "40%", "attention": ">=1"}
    draws, random = Admitted(Budget.of(value, rack)), np.random.default_rng(0)
    assert draws.shares() is None
    assert {draws.draw(random) for _ in range(100)} == set(admitted(value, rack))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("limit", [{"latency_ms": "{least}"}, {"latency_ms": ">={most}"}, {"latency_ms": "{most}..1e9"}])
def test_the_nearest_that_is_named_is_admitted_as_it_is_printed(limit, scale):
    class Measured:
        def of_space(self, *_):
            return 0.1 * scale, [{"attention": (1 + index / 7) * scale, "linear": scale / 3} for index in range(4)]

    def of(least, most):
        value = {key: text.format(least=least, most=most) for key, text in limit.items()}
        return Budget.of(value, space(4), latency=Measured())

    with pytest.raises(ConfigError, match=r"cannot be met: the nearest that can is ") as error:
        of(0.5 * scale, 100 * scale)
    nearest = str(error.value).split()[-3]
    assert of(nearest, nearest).solve() is not None


def test_numbers_are_read_as_they_are_printed():
    assert Budget.of({"kv_bytes": "1,024"}, space(6, THREE)).text() == "kv_bytes <= 1,024"
    assert Budget.of({"kv_bytes": "1,000..2,000,000"}, space(6, THREE)).text() == "kv_bytes 1,000..2,000,000"
    assert Budget.of({"attention": ">=0", "kv_bytes": "0.."}, space(6, THREE)).text() == "attention >= 0, kv_bytes >= 0"
    for wrong in ("1,02", "1,0245", ",024", "1e999.."):
        with pytest.raises(ConfigError, match="kv_bytes"):
            Budget.of({"kv_bytes": wrong}, space(6, THREE))


def test_numbers_of_other_libraries_are_numbers():
    assert Budget.of(np.int64(2), space()).text() == "attention = 2"


@pytest.mark.parametrize("wrong", [("typo",) * 6, ("linear",) * 5, ()])
def test_what_is_no_placement_of_the_space_is_an_error(wrong):
    with pytest.raises(ConfigError, match="placement"):
        Budget.of(2, space()).admits(wrong)
