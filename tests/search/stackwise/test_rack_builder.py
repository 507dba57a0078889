"""Racks built stack by stack: what comes in stays what it is, what is there keeps its weights, and all of it is one spec."""

import copy
import doctest
import warnings

import pytest
import torch

import search.stackwise.rack_builder
from configs import ConfigError, GrowthSpec, StackWiseConfig
from models.architecture import Block, Stack
from models.growth.new_stack import capped_notes
from models.linears.adapters import AdaptedLinear, is_adapter
from models.rack import modules as base
from models.rack_spec import RackSpec
from models.spec.stack import StackSpec
from search.stackwise.rack_builder import ProgressiveRackBuilder

SIZES = {"vocab_size": 30, "d_model": 32, "d_ff": 48, "n_heads": 2}
TOKENS = torch.arange(24).view(2, 12) * 5 % 30


def config_of(*, model=None, **progressive):
    tree = {"model": {**SIZES, **(model or {})}, "training": {"progressive": progressive}}
    return StackWiseConfig.from_dict(tree)


def builder_of(n_stacks=0, *, precision=None, **progressive):
    builder = ProgressiveRackBuilder(config_of(**progressive))
    for _ in range(n_stacks):
        shaken(builder.append_stack(n_blocks=1, precision=precision))
    return builder


def shaken(stack):
    """The stack with weights that are not those that it starts with: what is zero then shows."""
    generator = torch.Generator().manual_seed(int(stack.uid))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return stack


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def train_a_step(builder):
    """One step by SGD on what trains, of a rack in training."""
    rack = builder.build_rack()
    parameters = [parameter for parameter in rack.parameters() if parameter.requires_grad]
    logits = rack(TOKENS)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()).backward()
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None


def test_the_examples():
    found = doctest.testmod(search.stackwise.rack_builder, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 12
    assert not found.failed


def test_both_ways_to_a_builder():
    of_config = ProgressiveRackBuilder(config_of(), building_mode="prepend", default_precision="bfloat16")
    of_sizes = ProgressiveRackBuilder(**SIZES, building_mode="prepend", default_precision="bfloat16")
    assert of_sizes.config == of_config.config
    for builder in (of_config, of_sizes):
        builder.add_stack(n_blocks=1)
        newest = builder.add_stack(n_blocks=2)
        assert builder.build_rack().stacks[0] is newest
    assert of_config.spec == of_sizes.spec
    assert torch.equal(of_config.build_rack()(TOKENS), of_sizes.build_rack()(TOKENS))
    with pytest.raises(ConfigError, match="give a config or sizes, not both: d_model"):
        ProgressiveRackBuilder(config_of(), d_model=32)
    with pytest.raises(ConfigError, match=r"model\.d_modl"):
        ProgressiveRackBuilder(d_modl=32)


def test_the_configuration_says_what_is_not_told():
    builder = ProgressiveRackBuilder(config_of(building_mode="prepend", new_stack_precision="bfloat16", max_stacks=2))
    first, second = builder.add_stack(), builder.add_stack(n_blocks=2)
    assert list(builder.build_rack().stacks) == [second, first]
    assert (len(first.blocks), first.spec.precision) == (4, "bfloat16")
    with pytest.raises(ConfigError, match="there are 2 stacks already: max_stacks = 2"):
        builder.append_stack()
    builder.config.training.progressive.max_stacks = 3
    builder.append_stack()
    assert builder.current_stacks == 3


def test_what_is_configured_later_holds_where_the_builder_was_told_nothing(tmp_path):
    builder = ProgressiveRackBuilder(config_of())
    builder.append_stack(n_blocks=1)
    builder.save(tmp_path / "builder.safetensors")
    for each in (builder, ProgressiveRackBuilder.load(tmp_path / "builder.safetensors")):
        each.config.training.progressive.building_mode = "prepend"
        each.config.training.progressive.new_stack_precision = "bfloat16"
        newest = each.add_stack(n_blocks=1)
        assert (newest.stack_id, newest.spec.precision) == (0, "bfloat16")


@pytest.mark.parametrize(
    ("told", "name", "value", "message"),
    [
        ({"default_precision": "half"}, "new_stack_precision", "bfloat16", "bfloat16, .* made with default_precision = 'half'"),
        ({"default_precision": "full"}, "new_stack_precision", "qlora", "qlora, .* made with default_precision = 'full'"),
        ({"building_mode": "append"}, "building_mode", "prepend", "prepend, .* made with building_mode = 'append'"),
    ],
)
def test_what_is_configured_later_is_refused_where_the_builder_was_told_something_else(tmp_path, told, name, value, message):
    builder = ProgressiveRackBuilder(config_of(), **told)
    builder.append_stack(n_blocks=1)
    builder.save(tmp_path / "builder.safetensors")
    for each in (builder, ProgressiveRackBuilder.load(tmp_path / "builder.safetensors")):
        setattr(each.config.training.progressive, name, value)
        with pytest.raises(ConfigError, match=rf"training\.progressive\.{name}: {message}: leave one of them out"):
            each.add_stack(n_blocks=1)
        assert each.current_stacks == 1
        setattr(each.config.training.progressive, name, GrowthSpec.model_fields[name].default)
        each.add_stack(n_blocks=1)


def test_there_is_no_rack_without_stacks():
    with pytest.raises(ValueError, match="there are no stacks yet"):
        ProgressiveRackBuilder(**SIZES).build_rack()


@pytest.mark.parametrize("precision", ["full", "half", "bfloat16", "fp8", "nvfp4", "qlora"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_new_stack_changes_nothing_at_first(precision, place):
    builder = builder_of(2, qlora_enabled=True)
    before, stacks = builder.build_rack()(TOKENS), {stack.uid: state(stack) for stack in builder.build_rack().stacks}
    newest = builder.add_stack(place, n_blocks=2, precision=precision)
    rack = builder.build_rack()
    assert rack.stacks[place] is newest
    assert (newest.stack_id, newest.uid, newest.spec.precision) == (place, 2, precision)
    assert [stack.stack_id for stack in rack.stacks] == [0, 1, 2]
    assert torch.equal(rack(TOKENS), before)
    assert all(same(state(stack), stacks[stack.uid]) for stack in rack.stacks if stack.uid in stacks)


def test_the_rack_is_what_was_trained_and_what_its_spec_builds():
    builder = builder_of(1)
    first = builder.build_rack()
    train_a_step(builder)
    table, head = first.embedding.weight, first.head.norm.weight
    second = builder.append_stack(n_blocks=1)
    rack = builder.build_rack()
    assert rack.embedding.weight is table
    assert rack.head.norm.weight is head
    built = rack.spec.build(seed=5)
    built.load_state_dict(rack.state_dict())
    assert torch.equal(built(TOKENS), rack(TOKENS))
    before = state(second)
    train_a_step(builder)
    assert not same(state(second), before)
    assert second is builder.build_rack().stacks[1]
    assert isinstance(rack, base.Rack)
    assert all(isinstance(stack, Stack) for stack in rack.stacks)
    assert all(isinstance(block, Block) for block in rack.blocks())


def test_a_stack_below_trains_alone_under_a_frozen_trunk():
    builder = builder_of(2)
    newest = builder.prepend_stack(n_blocks=1)
    builder.freeze_trunk([1, 2])
    before = {stack.uid: state(stack) for stack in builder.build_rack().stacks}
    train_a_step(builder)
    assert [same(state(stack), before[stack.uid]) for stack in builder.build_rack().stacks] == [False, True, True]
    assert newest is builder.build_rack().stacks[0]


@pytest.mark.parametrize("init", ["random", "copy_last"])
def test_other_starts(init):
    builder = builder_of(1, init=init)
    before = builder.build_rack()(TOKENS)
    newest = builder.append_stack(n_blocks=1)
    assert not torch.equal(builder.build_rack()(TOKENS), before)
    assert same(state(newest), state(builder.build_rack().stacks[0])) == (init == "copy_last")


def test_both_adapters_are_there_once_and_apart():
    builder = builder_of(1, qlora_enabled=True, progressive_qlora=True)
    names = [frozenset(builder.build_rack().stacks[0].state_dict())]
    for _ in range(3):
        builder.append_stack(n_blocks=1)
        names.append(frozenset(builder.build_rack().stacks[0].state_dict()))
    assert names[1] == names[2] == names[3]
    added = names[1] - names[0]
    assert len(added) == 7 * 2
    assert all(".adapters.progressive." in name for name in added)
    assert {name.replace("progressive", "lora") for name in added} <= names[0]
    last, ranks = builder.build_rack().stacks[-1], builder.build_rack().stacks[0]
    assert not any("progressive" in name for name in last.state_dict())
    adapters = ranks.blocks[0].mixer.query.adapters
    assert (len(adapters["lora"].down), len(adapters["progressive"].down)) == (16, 8)
    assert not torch.equal(adapters["lora"].down[:8], adapters["progressive"].down)


@pytest.mark.parametrize("progressive_qlora", [None, False])
def test_a_frozen_trunk_gets_no_dead_weight_unless_it_is_asked_for(progressive_qlora):
    builder = builder_of(2, qlora_enabled=True, progressive_qlora=progressive_qlora)
    assert not any("progressive" in name for name in builder.build_rack().state_dict())


def test_what_is_frozen_and_what_trains_by_place():
    builder = builder_of(2, qlora_enabled=True, progressive_qlora=True)
    old = builder.build_rack().stacks[0]
    meant = trained(old)
    assert meant
    assert not any(is_adapter(name) for name in meant)
    newest = builder.prepend_stack(n_blocks=1)
    builder.freeze_trunk([1, 2])
    assert trained(old) == set()
    assert trained(newest)
    builder.freeze_all_but_qlora([1, 2])
    assert trained(old) == {name for name in state(old) if is_adapter(name)}
    assert {name.split(".")[-2] for name in trained(old)} == {"lora", "progressive"}
    builder.unfreeze_trunk([1])
    assert trained(old) == meant
    assert all(is_adapter(name) for name in trained(builder.build_rack().stacks[2]))
    builder.disable_qlora_training([2])
    assert trained(builder.build_rack().stacks[2]) == set()
    builder.enable_qlora_training([2])
    assert all(is_adapter(name) for name in trained(builder.build_rack().stacks[2]))
    for place in (-1, 3):
        with pytest.raises(ValueError, match=f"no stack at place {place}: there are 3"):
            builder.freeze_trunk([place])


def test_of_stored_weights_adapters_thaw():
    builder = builder_of(1, qlora_enabled=True)
    stack = builder.build_rack().stacks[0]
    builder.quantize_stack(0, "nf4")
    builder.freeze_trunk([0])
    builder.unfreeze_trunk([0])
    assert trained(stack) == {name for name, _ in stack.named_parameters() if is_adapter(name)}


def test_a_stack_freezes_itself_and_the_builder_knows():
    builder = builder_of(2, qlora_enabled=True)
    stack = builder.build_rack().stacks[0]
    meant = trained(stack)
    builder.freeze_trunk([0])
    stack.unfreeze()
    assert trained(stack) == meant
    stack.freeze()
    builder.append_stack(n_blocks=1)
    assert trained(stack) == set()
    assert builder.spec.stacks[0].lr_scale == 0


def test_up_projections_stay_frozen_through_it_all():
    builder = ProgressiveRackBuilder(config_of(model={"freeze_up_proj": True}, qlora_enabled=True))
    stack = builder.append_stack(n_blocks=1)
    meant = trained(stack)
    assert "blocks.0.mlp.down.weight" in meant
    assert "blocks.0.mlp.up.weight" not in meant
    builder.freeze_trunk([0])
    builder.unfreeze_trunk([0])
    assert trained(stack) == meant
    builder.quantize_stack(0, "nf4")
    builder.freeze_all_but_qlora([0])
    assert {name.partition(".adapters.")[0] for name in trained(stack)} >= {"blocks.0.mlp.up", "blocks.0.mlp.down"}


def test_a_stored_trunk_of_adapters_learns_and_its_weights_stay_bit_for_bit():
    builder = builder_of(2, qlora_enabled=True, progressive_qlora=True)
    builder.quantize_stack(0, "nf4")
    builder.freeze_all_but_qlora([0])
    stack = builder.build_rack().stacks[0]
    builder.build_rack().eval()
    with torch.no_grad():
        builder.build_rack()(TOKENS)
    builder.build_rack().train()
    before = state(stack)
    for _ in range(2):  # what comes before an adapter that is zero has a gradient from the second step on
        train_a_step(builder)
    after = state(stack)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if is_adapter(name)}


def test_adapters_for_all_stacks_also_those_to_come():
    builder = builder_of(0)
    builder.add_qlora_to_all_stacks(rank=4, alpha=12)
    builder.append_stack(n_blocks=1)
    assert builder.qlora_adapters == {0: {"rank": 4, "alpha": 12, "enabled": False}}
    builder = builder_of(1)
    before = builder.build_rack()(TOKENS)
    for rank in (4, 6):  # the second call finds what it would add
        builder.add_qlora_to_all_stacks(rank=rank, alpha=12)
        assert builder.qlora_adapters == {0: {"rank": 4, "alpha": 12, "enabled": False}}
    assert torch.equal(builder.build_rack()(TOKENS), before)
    assert trained(builder.build_rack().stacks[0]) == {
        name for name in state(builder.build_rack().stacks[0]) if not is_adapter(name)
    }
    with pytest.raises(ConfigError, match="qlora_rank"):
        builder.add_qlora_to_all_stacks(rank=-1)


def test_adapters_for_the_trunk():
    builder = builder_of(3)
    for rank in (4, 6):
        builder.add_qlora_to_trunk(rank=rank)
    names = [{name.split(".")[-2] for name in state(stack) if is_adapter(name)} for stack in builder.build_rack().stacks]
    assert names == [{"progressive"}, {"progressive"}, set()]
    assert len(builder.build_rack().stacks[0].blocks[0].mixer.query.adapters["progressive"].down) == 4
    with pytest.raises(ValueError, match="stack 2 has no adapters that could train"):
        builder.freeze_all_but_qlora([2])


def test_adapters_follow_their_stack_wherever_it_comes_to_stand():
    sizes = {index: {"rank": 2 + index, "alpha": 4} for index in range(3)}
    builder = ProgressiveRackBuilder(config_of(qlora_enabled=True, qlora_strategy="variable", qlora_configs=sizes))
    stacks = [builder.append_stack(n_blocks=1), builder.prepend_stack(n_blocks=1), builder.add_stack(1, n_blocks=1)]
    assert [stack.uid for stack in builder.build_rack().stacks] == [1, 2, 0]
    for stack in stacks:
        ranks = {len(part.adapters["lora"].down) for part in stack.modules() if isinstance(part, AdaptedLinear)}
        assert ranks == {2 + stack.uid}
    assert {place: each["rank"] for place, each in builder.qlora_adapters.items()} == {0: 3, 1: 4, 2: 2}


def test_a_rank_that_is_capped_is_told_once():
    builder = ProgressiveRackBuilder(config_of(qlora_enabled=True, qlora_strategy="progressive", qlora_rank=16))
    builder.append_stack(n_blocks=1)
    text = "stack 1: rank 32 is over half of the smaller side of every linear; the highest it came to is 16"
    with pytest.warns(UserWarning, match=text):
        builder.append_stack(n_blocks=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        builder.freeze_trunk([0])


def test_ranks_that_are_capped_are_told_of_any_rack():
    adapters = {"rank": 40, "fit": True}
    stack = {"n_blocks": 1, "block": {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 64}}}
    said = [{**stack, "lora": {"rank": 16, "fit": True}, "progressive_lora": adapters}, {**stack, "lora": adapters}, stack]
    spec = RackSpec(vocab_size=8, d_model=32, stacks=[{**each, "uid": uid} for each, uid in zip(said, (4, 2, 0), strict=True)])
    text = "rank 40 is over half of the smaller side of every linear; the highest it came to is 16"
    assert capped_notes(spec.build(), spec) == [f"stack 4: {text}", f"stack 2: {text}"]


def test_a_narrow_linear_among_wide_ones_is_no_mistake():
    builder = ProgressiveRackBuilder(config_of(model={"n_heads": 4, "n_kv_heads": 2}, qlora_enabled=True))
    mixer = builder.append_stack(n_blocks=1).blocks[0].mixer
    assert [len(linear.adapters["lora"].down) for linear in (mixer.query, mixer.key)] == [16, 8]


def test_stacks_are_taken_away_and_replaced():
    builder = builder_of(3)
    rack = builder.build_rack()
    first, last = rack.stacks[0], rack.stacks[2]
    expected = rack.head(last(first(rack.embedding(TOKENS))))
    builder.remove_stack(1)
    assert list(builder.build_rack().stacks) == [first, last]
    assert [stack.stack_id for stack in builder.build_rack().stacks] == [0, 1]
    assert torch.equal(builder.build_rack()(TOKENS), expected)
    newest = builder.replace_stack(0, n_blocks=2)
    assert [stack.uid for stack in builder.build_rack().stacks] == [3, 2]
    assert (len(newest.blocks), builder.build_rack().stacks[0]) == (2, newest)
    assert torch.equal(builder.build_rack()(TOKENS), rack.head(last(rack.embedding(TOKENS))))
    with pytest.raises(ValueError, match="no stack has the uid 1"):
        builder.remove_stack(1)


def test_a_stack_is_replaced_by_one_with_its_weights():
    builder = builder_of(2)
    rack = builder.build_rack()
    made = shaken(Stack([Block(d_model=32, d_ff=48, n_heads=2, attention_mode="causal", seed=4)], stack_id=7))
    expected = rack.head(rack.stacks[1](made(rack.embedding(TOKENS))))
    placed = builder.replace_stack(0, made)
    torch.testing.assert_close(builder.build_rack()(TOKENS), expected)
    assert (placed.uid, placed.stack_id) == (2, 0)
    wide = StackSpec(n_blocks=1, block={"mlp": {"kind": "swiglu", "d_ff": 64}})
    assert builder.replace_stack(2, wide).blocks[0].mlp.d_ff == 64


def test_stacks_that_are_fused_are_the_same_function():
    builder = builder_of(3)
    before, blocks = builder.build_rack()(TOKENS), builder.build_rack().blocks()
    fused = builder.fuse_stacks([1, 2])
    assert [stack.uid for stack in builder.build_rack().stacks] == [0, 1]
    assert builder.build_rack().blocks() == blocks
    assert torch.equal(builder.build_rack()(TOKENS), before)
    builder.freeze_trunk([1])
    assert trained(fused) == set()
    builder.unfreeze_trunk([1])
    assert len(trained(builder.build_rack().stacks[1])) == len(list(fused.parameters()))


@pytest.mark.parametrize(
    ("name", "precision", "share"),
    [
        ("nf4", "qlora", 0.17),
        ("nvfp4", "nvfp4", 0.17),
        ("fp8", "fp8", 0.28),
        ("bfloat16", "bfloat16", 0.52),
        ("qlora", "qlora", 0.17),
    ],
)
def test_stacks_are_stored_one_by_one_and_measured(name, precision, share):
    builder = builder_of(2)
    dense, untouched = (stack.memory_bytes() for stack in builder.build_rack().stacks)
    total = builder.memory_bytes()
    builder.quantize_stack(0, name)
    stack = builder.build_rack().stacks[0]
    assert (stack.spec.precision, stack.spec.stored) == (precision, True)
    assert stack.memory_bytes() < share * dense + 1500  # norms
    assert builder.build_rack().stacks[1].memory_bytes() == untouched
    assert builder.memory_bytes() == total - dense + stack.memory_bytes()
    assert not any(isinstance(part, AdaptedLinear) for part in stack.modules())
    other = "fp8" if precision != "fp8" else "nf4"
    with pytest.raises(ValueError, match="stored as"):
        builder.quantize_stack(0, other)


def test_stacks_train_as_they_will_be_stored():
    builder = builder_of(1)
    builder.quantize_stack(0, "nvfp4", trains=True)
    stack = builder.build_rack().stacks[0]
    rack = builder.build_rack()
    before, own, trains = state(rack), state(stack), rack(TOKENS)
    train_a_step(builder)
    assert not same(state(stack), own)
    rack.load_state_dict(before)
    builder.quantize_stack(0, "nvfp4")
    torch.testing.assert_close(builder.build_rack()(TOKENS), trains)
    with pytest.raises(ValueError, match="'nf4' is not trained as it is stored: choose one of fp8, nvfp4"):
        builder_of(1).quantize_stack(0, "nf4", trains=True)
    with pytest.raises(ValueError, match="unknown format 'nf5'; did you mean 'nf4'"):
        builder_of(1).quantize_stack(0, "nf5")


def test_what_there_is_in_numbers():
    builder = builder_of(2, qlora_enabled=True, progressive_qlora=True)
    builder.freeze_all_but_qlora([0])
    info = builder.info()
    rack = builder.build_rack()
    assert info["parameters"] == sum(parameter.numel() for parameter in rack.parameters())
    assert info["trainable"] == sum(parameter.numel() for parameter in rack.parameters() if parameter.requires_grad)
    assert info["bytes"] == 4 * info["parameters"]
    first, second = info["stacks"]
    assert (first["uid"], first["stack_id"], first["n_blocks"], first["precision"], first["stored"]) == (0, 0, 1, "full", False)
    assert first["adapters"] == {"lora": {"rank": 16, "trains": True}, "progressive_lora": {"rank": 8, "trains": True}}
    assert second["adapters"] == {"lora": {"rank": 16, "trains": False}}
    assert first["trainable"] == sum(each.numel() for name, each in rack.stacks[0].named_parameters() if is_adapter(name))
    assert first["bytes"] == rack.stacks[0].memory_bytes()


def test_all_of_it_is_saved_and_goes_on(tmp_path):
    builder = builder_of(1, qlora_enabled=True, progressive_qlora=True, init="random")
    shaken(builder.prepend_stack(n_blocks=1, precision="qlora"))
    shaken(builder.append_stack(n_blocks=2, precision="half"))
    builder.quantize_stack(0, "fp8")
    builder.freeze_all_but_qlora([0, 1])
    builder.add_qlora_to_all_stacks(rank=3)
    builder.trained = {0}
    builder.save(tmp_path / "rack.safetensors")
    loaded = ProgressiveRackBuilder.load(tmp_path / "rack.safetensors")
    assert same(state(loaded.build_rack()), state(builder.build_rack()))
    assert torch.equal(loaded.build_rack()(TOKENS), builder.build_rack()(TOKENS))
    assert (loaded.spec, loaded.initial, loaded.config) == (builder.spec, builder.initial, builder.config)
    assert loaded.trained == {0}
    assert trained(loaded.build_rack()) == trained(builder.build_rack())
    assert loaded.build_rack().head.output.weight is loaded.build_rack().embedding.weight
    for each in (builder, loaded):
        each.unfreeze_trunk([0, 1])
        each.append_stack(n_blocks=1)
    assert same(state(loaded.build_rack()), state(builder.build_rack()))
    assert trained(loaded.build_rack()) == trained(builder.build_rack())


def test_a_file_that_is_damaged_or_missing_is_told(tmp_path):
    builder = builder_of(1)
    path = tmp_path / "rack.safetensors"
    with pytest.raises(ConfigError, match="there is no such file"):
        ProgressiveRackBuilder.load(path)
    builder.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        ProgressiveRackBuilder.load(path)


def test_a_rack_that_others_have_grown_is_taken_over():
    builder, other = builder_of(1), builder_of(2)
    rack = copy.deepcopy(other.build_rack())
    builder.adopt(rack, other.spec, other.initial)
    assert builder.build_rack() is rack
    assert builder.current_stacks == 2
    assert builder.append_stack(n_blocks=1).uid == 2
