"""What stacks are made of as new ones and in the trunk: sizes of adapters, precision, and what trains."""

import pytest

from configs import GrowthSpec
from configs.limits import WIDEST
from models import RackSpec, StackSpec
from models.growth.new_stack import lora_of, new_stack, progressive_lora_of
from models.linears.adapters import is_adapter
from models.spec.parameters import LoraSpec
from search.jobs.progressive.trunk_strategy import trunk_stack

BLOCK = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 48}}
STACK = StackSpec(n_blocks=1, block=BLOCK)
FORMATS = {"nf4": "qlora", "nvfp4": "nvfp4", "fp8": "fp8", "bfloat16": "bfloat16", "half": "half"}


def built(stack):
    """A stack among its parameters by name, in a rack of it alone."""
    rack = RackSpec(vocab_size=8, d_model=32, stacks=[stack.to_dict()]).build()
    return dict(rack.stacks[0].named_parameters())


def trained(stack):
    """Which kinds of parameters train: adapters by their name, linears, norms."""
    kinds = {"lora": set(), "progressive": set(), "linears": set(), "norms": set()}
    for name, parameter in built(stack).items():
        own = name.split(".")[-2] if is_adapter(name) else "norms" if "norm" in name else "linears"
        kinds[own].add(parameter.requires_grad)
    return {kind: any(flags) for kind, flags in kinds.items() if flags}


@pytest.mark.parametrize(
    ("rank_pattern", "ranks", "alpha_pattern", "alphas"),
    [
        ("increasing", [16, 32, 64, 128], "constant", [32, 32, 32, 32]),
        ("constant", [16, 16, 16, 16], "increasing", [32, 64, 128, 256]),
        ("linear", [16, 24, 32, 40], "linear", [32, 48, 64, 80]),
        ("decreasing", [16, 8, 4, 2, 1, 1], "decreasing", [32, 16, 8, 4, 2, 1, 1]),
    ],
)
def test_sizes_by_pattern(rank_pattern, ranks, alpha_pattern, alphas):
    growth = GrowthSpec(qlora_strategy="progressive", qlora_rank_pattern=rank_pattern, qlora_alpha_pattern=alpha_pattern)
    assert [lora_of(growth, index).rank for index in range(len(ranks))] == ranks
    assert [lora_of(growth, index).alpha for index in range(len(alphas))] == alphas


def test_ranks_that_double_end_at_what_no_linear_has():
    growth = GrowthSpec(qlora_enabled=True, qlora_strategy="progressive", qlora_rank_pattern="increasing")
    assert lora_of(growth, 1000).rank == lora_of(growth, 100).rank == WIDEST


def test_sizes_that_are_the_same_or_said_one_by_one():
    configs = {0: {"rank": 8, "alpha": 16}, "2": {"rank": 4}}
    simplified = GrowthSpec()
    assert {(lora_of(simplified, index).rank, lora_of(simplified, index).alpha) for index in range(5)} == {(16, 32)}
    variable = GrowthSpec(qlora_strategy="variable", qlora_configs=configs)
    assert [(lora_of(variable, index).rank, lora_of(variable, index).alpha) for index in range(3)] == [(8, 16), (16, 32), (4, 32)]


def test_ranks_are_capped_at_half_of_the_narrower_side():
    growth = GrowthSpec(qlora_enabled=True, qlora_strategy="progressive", qlora_rank=16)
    parameters = built(new_stack(STACK, growth, 5))
    ranks = {len(parameter) for name, parameter in parameters.items() if name.endswith("down") and is_adapter(name)}
    assert ranks == {16}


def test_adapters_are_on_all_linears_or_those_that_are_named():
    def linears(**options):
        names = built(new_stack(STACK, GrowthSpec(qlora_enabled=True, **options), 0))
        return {name.partition(".adapters.")[0] for name in names if is_adapter(name)}

    parts = ("mixer.query", "mixer.key", "mixer.value", "mixer.output", "mlp.gate", "mlp.up", "mlp.down")
    assert linears() == {f"blocks.0.{part}" for part in parts}
    assert linears(qlora_targets=["query", "mlp"]) == {f"blocks.0.{part}" for part in (parts[0], *parts[4:])}
    assert linears(qlora_targets=["mixer.*"]) == {f"blocks.0.{part}" for part in parts[:4]}
    assert lora_of(GrowthSpec(qlora_rslora=True), 0).rslora


ALL = {"linears": True, "norms": True}
NONE = {"linears": False, "norms": False}
TRUNK = {"trunk_strategy": "qlora", "qlora_enabled": True}
BOTH = {"qlora_enabled": True, "progressive_qlora": True}


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ({}, ALL),
        ({"qlora_enabled": True}, {"lora": False, **ALL}),
        ({"qlora_enabled": True, "train_stack_lora_with_base": True}, {"lora": True, **ALL}),
        ({"new_stack_precision": "bfloat16", "qlora_enabled": True}, {"lora": False, **ALL}),
        ({"new_stack_precision": "nvfp4"}, ALL),
        ({"new_stack_precision": "qlora"}, {"lora": True, "norms": False}),
        ({"new_stack_precision": "qlora", "progressive_qlora": True}, {"lora": True, "norms": False}),
    ],
)
def test_what_of_a_new_stack_trains(growth, expected):
    stack = new_stack(STACK, GrowthSpec(**growth), 0)
    assert stack.precision == growth.get("new_stack_precision", "full")
    assert trained(stack) == expected


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ({}, NONE),
        ({"qlora_enabled": True}, {"lora": False, **NONE}),
        (BOTH, {"lora": False, "progressive": False, **NONE}),
        ({"new_stack_precision": "half"}, {"norms": False}),
        ({"new_stack_precision": "qlora"}, {"lora": False, "norms": False}),
        ({"trunk_strategy": "qlora"}, {"progressive": True, "norms": False}),
        (TRUNK, {"lora": True, "progressive": True, "norms": False}),
        ({**TRUNK, "progressive_qlora": False}, {"lora": True, "norms": False}),
        ({**TRUNK, "train_stack_lora_with_base": True, "progressive_qlora": False}, {"lora": True, "norms": False}),
        ({"trunk_strategy": "full"}, ALL),
        (
            {"trunk_strategy": "full", "qlora_enabled": True, "progressive_qlora": True},
            {"lora": False, "progressive": False, **ALL},
        ),
        ({"trunk_strategy": "full", "new_stack_precision": "qlora"}, {"lora": True, "norms": False}),
    ],
)
def test_what_of_a_stack_in_the_trunk_trains(growth, expected):
    growth = GrowthSpec(**growth)
    stack = trunk_stack(new_stack(STACK, growth, 0), growth)
    assert trained(stack) == expected
    if growth.trunk_strategy != "full":
        assert trunk_stack(stack, growth) == stack


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_trunk_is_stored_in_the_format_that_is_asked_for(format_name):
    growth = GrowthSpec(trunk_strategy="qlora", quantization_type=format_name)
    stack = trunk_stack(new_stack(STACK, growth, 0), growth)
    assert (stack.precision, stack.stored) == (FORMATS[format_name], True)
    assert trained(stack) == {"progressive": True, "norms": False}


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
@pytest.mark.parametrize("strategy", ["frozen", "qlora"])
def test_what_has_learnt_in_few_bits_is_stored_in_those(precision, strategy):
    growth = GrowthSpec(new_stack_precision=precision, trunk_strategy=strategy)
    fresh = new_stack(STACK, growth, 0)
    assert not fresh.stored
    assert (trunk_stack(fresh, growth).precision, trunk_stack(fresh, growth).stored) == (precision, True)


def test_a_frozen_trunk_of_full_precision_stays_dense():
    assert not trunk_stack(STACK, GrowthSpec()).stored


def test_the_window_of_adapters_that_train():
    growth = GrowthSpec(trunk_strategy="qlora", qlora_trunk_window=1)
    outside = trunk_stack(trunk_stack(STACK, growth), growth, in_window=False)
    assert trained(outside) == {"progressive": False, "norms": False}
    assert outside.stored
    assert trunk_stack(STACK, growth, in_window=False) == outside


def test_a_full_trunk_learns_at_its_own_rate_times_the_trunks():
    growth = GrowthSpec(trunk_strategy="full", trunk_lr_scale=0.5)
    stack = trunk_stack(STACK.model_copy(update={"lr_scale": 0.4}), growth)
    assert {parameter.lr_scale for parameter in built(stack).values()} == {0.2}


def test_what_a_stack_says_itself_holds():
    said = StackSpec(n_blocks=1, block=BLOCK, precision="bfloat16", lora={"rank": 3}, lr_scale=0.5)
    fresh = new_stack(said, GrowthSpec(qlora_enabled=True, new_stack_precision="half"), 0)
    assert (fresh.precision, fresh.lora, fresh.lr_scale) == ("bfloat16", LoraSpec(rank=3), 0.5)


def test_the_second_adapters():
    growth = GrowthSpec(progressive_qlora=True)
    second = progressive_lora_of(growth)
    assert (second.rank, second.alpha) == (8, 16)
    assert progressive_lora_of(GrowthSpec(progressive_qlora=None)) is None
    assert progressive_lora_of(GrowthSpec(trunk_strategy="qlora")) == second
    assert progressive_lora_of(GrowthSpec(trunk_strategy="qlora", progressive_qlora=False, qlora_enabled=True)) is None
