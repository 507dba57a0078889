"""The cost table beside the costs of the racks that are meant, and what a sampler makes a supernet cost."""

import pytest

from configs import ConfigError
from models.assembly.cost import cost
from search.budget.costs import CostTable
from search.samplers import SAMPLERS
from search.samplers.shared.expected_cost import expected_cost
from search.samplers.shared.sampler import generator
from tests.search.landscapes import MIXERS, mixed_space, space

CONTEXT = 100


def some_placements(slots, n=12):
    random = generator("test", len(slots))
    return [tuple(slot.names[random.integers(len(slot.names))] for slot in slots) for _ in range(n)]


def test_a_placement_costs_what_the_rack_that_it_describes_costs():
    rack = mixed_space()
    costs = CostTable.of(rack, CONTEXT, "fp32")
    for placement in some_placements(rack.slots()):
        counted, ours = cost(rack.place(placement), CONTEXT), costs.of_placement(placement)
        assert ours["params"] == counted.n_parameters
        caches = sum(part.state for part in counted.parts if part.kind == "attention")
        assert ours["kv_bytes"] == 4 * caches
        assert ours["state_bytes"] >= 4 * (counted.state - caches)
        assert ours["flops"] == pytest.approx(counted.flops)
    assert costs.slots == rack.slots()


def test_a_cache_grows_with_the_context_and_a_state_does_not():
    rack = space(2, ("attention", "window", "linear"))
    short, long = (CostTable.of(rack, context) for context in (64, 128))
    for choice, longer in zip(short.choices, long.choices, strict=True):
        assert longer["attention"]["kv_bytes"] == 2 * choice["attention"]["kv_bytes"] == 2 * 64 * 2 * 16 * 2
        assert longer["window"]["kv_bytes"] == choice["window"]["kv_bytes"] == 32 * 2 * 16 * 2
        assert choice["attention"]["state_bytes"] == choice["window"]["state_bytes"] == choice["linear"]["kv_bytes"] == 0
        assert longer["linear"]["state_bytes"] == choice["linear"]["state_bytes"] > 0


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp8", 1)])
def test_bytes_are_by_dtype(dtype, size):
    costs = CostTable.of(space(1), CONTEXT, dtype)
    assert costs.choices[0]["attention"]["kv_bytes"] == 2 * 16 * CONTEXT * size


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"dtype: unknown 'float32'; .*Known: bf16, fp16, fp32, fp8"):
        CostTable.of(space(1), CONTEXT, "float32")


def test_the_context_is_the_longest_sequence_unless_given():
    assert CostTable.of(space(1)).context == 1024
    assert CostTable.of(space(1).model_copy(update={"max_length": 77})).context == 77


def test_dear_is_what_is_kept_in_memory_then_operations():
    rack = space(2, ("linear", "gdn", "attention", "window"))
    costs = CostTable.of(rack, 1024)
    # The gated delta net keeps as much as linear attention, and what its convolutions remember.
    assert costs.by_cost() == ("attention", "window", "gdn", "linear")
    assert costs.by_cost(["linear", "window"]) == ("window", "linear")
    assert costs.dear_to_cheap_in(1) == ("attention", "window", "gdn", "linear")
    # Over four positions a window is no cheaper than attention, and a state is dearer than both.
    assert CostTable.of(rack, 4).by_cost()[:2] == ("gdn", "linear")


def test_layers_and_channel_mixers_have_costs_of_their_own():
    costs = CostTable.of(mixed_space(), CONTEXT)
    assert costs.dear_to_cheap_in(1) == ("wide", "narrow", "none")
    assert costs.dear_to_cheap_in(6) == ("attention", "window", "gdn")
    assert costs.choices[1]["none"]["params"] == costs.choices[1]["none"]["flops"] == 0


def test_latency_is_there_where_it_was_measured():
    class Measured:
        def of_space(self, space, context):
            assert context == CONTEXT
            return 1.0, [{name: len(name) for name in slot.names} for slot in space.slots()]

    costs = CostTable.of(space(2), CONTEXT, latency=Measured())
    assert costs.of_placement(("attention", "linear"))["latency_ms"] == 1 + 9 + 6
    assert "latency_ms" not in CostTable.of(space(2), CONTEXT).base


def sampler(options, rack):
    return SAMPLERS.build(SAMPLERS.part(options), slots=rack.slots(), space=rack)


def test_the_expected_cost_of_a_sampler_is_exact_where_it_is_simple():
    rack = space(2)
    costs = CostTable.of(rack, CONTEXT)
    all_of = {name: costs.of_placement((name, name)) for name in ("attention", "linear")}
    even = expected_cost(sampler("uniform", rack), costs, n_steps=10)
    weighted = expected_cost(sampler({"kind": "weighted", "weights": {"attention": 3, "linear": 1}}, rack), costs, 10)
    for key in costs.base:
        assert even[key] == pytest.approx((all_of["attention"][key] + all_of["linear"][key]) / 2)
        assert weighted[key] == pytest.approx(0.75 * all_of["attention"][key] + 0.25 * all_of["linear"][key])


def test_the_expected_cost_of_other_samplers_is_that_of_their_draws():
    rack = space(3)
    costs = CostTable.of(rack, CONTEXT)
    found = expected_cost(sampler({"kind": "sandwich", "n": 1}, rack), costs, n_steps=200)
    ends = (costs.of_placement(("linear",) * 3)["kv_bytes"] + costs.of_placement(("attention",) * 3)["kv_bytes"]) / 3
    assert found["kv_bytes"] == pytest.approx(ends * 1.5, rel=0.05)
    switch = sampler({"kind": "schedule", "first": {"kind": "fixed", "placements": {"all:linear": 1}},
                      "then": {"kind": "fixed", "placements": {"all:attention": 1}}, "start": 50, "end": 50}, rack)  # fmt: skip
    assert expected_cost(switch, costs, n_steps=100, n_draws=10)["kv_bytes"] == pytest.approx(ends * 1.5)


def test_all_mixers_have_operations():
    """What others leave out for recurrent mixers would make them look free."""
    choices = CostTable.of(space(1, tuple(MIXERS)), CONTEXT).choices[0]
    assert all(costs["flops"] > 2 * costs["params"] * 0.9 for costs in choices.values())
