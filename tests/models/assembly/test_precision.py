"""The precision of stacks: what they compute in, what they store, what trains, and that their neighbours do not notice."""

import pytest
import torch
from torch import nn

from models import MIXERS, RackSpec, Supernet
from models.assembly.cost import cost
from models.assembly.quantise import memory_bytes
from models.linears.adapters import AdaptedLinear, is_adapter
from models.linears.convert import dequantised
from models.linears.fake_quantised import FakeQuantisedLinear
from models.linears.quantised import QuantisedLinear
from models.rack.generation import generate
from models.spec.precision import STORED_AS, TRAINED_AS_STORED
from search.training.packing import Pack
from tests.models.edits import with_stack_fields

ATTENTION = {"kind": "attention", "n_heads": 2}
BLOCK = {"mixer": ATTENTION, "mlp": {"kind": "mlp", "d_ff": 24}}
TOKENS = torch.arange(24).view(2, 12) % 7
STORED = tuple(STORED_AS)
HALVES = {"half": torch.float16, "bfloat16": torch.bfloat16}


def rack(*stacks, **keys):
    each = [{"n_blocks": 1, "block": BLOCK, **stack} for stack in stacks]
    return RackSpec(**{"vocab_size": 8, "d_model": 32, "stacks": each, **keys})


def linears(stack):
    return {name: part for name, part in stack.named_modules() if isinstance(part, nn.Linear)}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("residual_dtype", [None, "bfloat16"])
def test_a_half_stack_computes_in_half_and_gives_back_the_stream(precision, stored, residual_dtype):
    keys = {"residual_dtype": residual_dtype}
    model = rack({}, {"precision": precision, "stored": stored}, {}, **keys).build()
    plain, types = rack({}, {}, {}, **keys).build(), {}
    for index, stack in enumerate(model.stacks):
        for name, linear in linears(stack).items():
            linear.register_forward_hook(lambda *said, at=(index, name): types.update({at: said[-1].dtype}))
    x = model.embed(TOKENS)
    between = [model.run(x, stop=stop) for stop in range(4)]
    assert {each.dtype for each in between} == {torch.bfloat16 if residual_dtype else torch.float32}
    assert {dtype for (index, _), dtype in types.items() if index == 1} == {HALVES[precision]}
    assert {dtype for (index, _), dtype in types.items() if index != 1} == {torch.float32}
    assert torch.equal(between[1], plain.run(x, stop=1)), "its neighbour below computes as ever"
    assert torch.equal(between[3], plain.run(between[2], start=2)), "and the one above"
    assert not torch.equal(between[2], plain.run(x, stop=2))
    torch.testing.assert_close(between[2], plain.run(x, stop=2), rtol=0.05, atol=0.05)
    model.head(between[3]).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    assert ("stacks.1.blocks.0.mlp.up.weight" in dict(model.named_parameters())) != stored
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("kind", [kind for kind in MIXERS if kind != "stochastic"])
def test_a_half_stack_goes_on_position_by_position(kind, precision, stored):
    block = {"mixer": {"kind": kind}, "mlp": {"kind": "rwkv"}}
    model = rack({"precision": precision, "stored": stored, "block": block}, max_length=12).build().eval()
    if not model.has_step:
        assert model(TOKENS).dtype == torch.float32
        return
    state, stepped = model.initial_state(2), []
    with torch.no_grad():
        for position in TOKENS.unbind(1):
            logits, state = model.step(position, state)
            stepped.append(logits)
        expected = model(TOKENS)
        assert (torch.stack(stepped, 1) - expected).norm() < 0.02 * expected.norm()
    assert generate(model, TOKENS, n_tokens=2).shape == (2, 14)


@pytest.mark.parametrize("precision", sorted(TRAINED_AS_STORED))
def test_what_trains_as_it_will_be_stored_is_the_same_function_stored(precision):
    spec = rack({}, {"precision": precision})
    model, stored = spec.build(), with_stack_fields(spec, 1, stored=True).build()
    assert all(isinstance(linear, FakeQuantisedLinear) for linear in linears(model.stacks[1]).values())
    assert all(isinstance(linear, QuantisedLinear) for linear in linears(stored.stacks[1]).values())
    torch.testing.assert_close(model(TOKENS), stored(TOKENS), rtol=1e-6, atol=1e-6)
    assert not torch.equal(model(TOKENS), rack({}, {}).build()(TOKENS))
    model(TOKENS).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.stacks[1].parameters())


@pytest.mark.parametrize("precision", STORED)
def test_a_stored_stack_is_stored_alone_and_what_is_left_of_it_trains(precision):
    spec = rack({}, {"precision": precision, "stored": True}, {})
    model, plain = spec.build(), rack({}, {}, {}).build()
    assert {part.format for part in linears(model.stacks[1]).values()} == {STORED_AS[precision]}
    others = [part for part in model.modules() if isinstance(part, QuantisedLinear)]
    assert len(others) == len(linears(plain.stacks[1]))
    if precision == "qlora":
        return
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, plain.get_parameter(name))
    for name, linear in linears(model.stacks[1]).items():
        assert not torch.equal(linear.weight, plain.stacks[1].get_submodule(name).weight)
        torch.testing.assert_close(linear.weight, plain.stacks[1].get_submodule(name).weight, rtol=0.3, atol=0.05)


def test_nf4_has_adapters_if_nothing_is_said_of_them():
    model = rack({"precision": "qlora"}).build()
    for linear in linears(model.stacks[0]).values():
        assert isinstance(linear, AdaptedLinear)
        assert linear.adapters["lora"].down.shape[0] == 16
        assert linear.adapters["lora"].scale == 2
    assert {is_adapter(name) for name, parameter in model.stacks.named_parameters() if parameter.requires_grad} == {True}
    for said in ({"lora": {"rank": 3}}, {"stack": {"rank": 3}}):
        spec = rack(
            {"precision": "qlora", **({"lora": said["stack"]} if "stack" in said else {})}, **said if "lora" in said else {}
        )
        assert {part.adapters["lora"].rank for part in linears(spec.build().stacks[0]).values()} == {3}
    none = rack({"precision": "qlora", "lora": {"apply": False, "freeze_others": False}}).build()
    assert not any(isinstance(part, AdaptedLinear) for part in none.modules())


def test_a_stored_trunk_is_small():
    """Measured, adapters and norms included: at most 0.30 of what bfloat16 takes."""
    block = {"mixer": {"kind": "attention", "n_heads": 4}, "mlp": "swiglu"}
    stored, half = (
        rack({"precision": precision, "stored": True, "block": block, "lora": {"rank": 2, "apply": False}}, d_model=256)
        for precision in ("qlora", "bfloat16")
    )
    assert memory_bytes(stored.build().stacks) <= 0.30 * memory_bytes(half.build().stacks)


@pytest.mark.parametrize("precision", STORED)
def test_stored_weights_are_counted_as_numbers(precision):
    stored = rack({"precision": precision, "stored": True, "lora": {"rank": 2}})
    plain = with_stack_fields(stored, 0, precision="full", stored=False)
    assert cost(stored, 12).n_parameters == cost(plain, 12).n_parameters
    assert cost(stored, 12).flops == cost(plain, 12).flops
    assert [part.n_parameters for part in cost(stored, 12).parts] == [part.n_parameters for part in cost(plain, 12).parts]


def test_what_is_said_of_a_weight_stays_right_when_it_is_stored():
    said = {"*.query.weight": {"lr_scale": 0.5}, "*.up": {"lora": {"rank": 3}}}
    model = rack({"precision": "nvfp4", "stored": True}, parameters=said).build()
    assert model.stacks[0].blocks[0].mlp.up.adapters["lora"].rank == 3


def test_places_of_a_shared_block_have_one_precision():
    shared = {"block": {**BLOCK, "share": "x"}}
    assert rack(shared, shared).build()
    with pytest.raises(ValueError, match="their settings differ"):
        rack(shared, {**shared, "precision": "half"})
    stored = rack(*[{**shared, "precision": "fp8", "stored": True}] * 2).build()
    assert stored.stacks[0].blocks[0] is stored.stacks[1].blocks[0]
    assert isinstance(stored.stacks[1].blocks[0].mlp.up, QuantisedLinear)


@pytest.mark.parametrize("stack", [{"precision": "qlora"}, {"precision": "half"}, {"precision": "fp8"}], ids=str)
def test_a_subnet_has_the_precision_of_its_stack(stack):
    choice = {"kind": "stochastic", "main": "a", "mixers": {"a": ATTENTION, "b": {"kind": "lru"}}}
    said = {"parameters": {"*.output": {"lr_scale": 0.5}}, "uid": 4, "progressive_lora": {"rank": 2}}
    supernet = Supernet(rack({"block": {**BLOCK, "mixer": choice}, **stack, **said}))
    supernet.activate(["b"])
    extracted = supernet.extract(["b"])
    assert torch.equal(extracted(TOKENS), supernet(TOKENS))
    placed = supernet.space.place(["b"])
    assert (placed.stacks[0].precision, placed.stacks[0].uid) == (stack["precision"], 4)
    assert placed.stacks[0].progressive_lora.rank == 2


@pytest.mark.parametrize("stack", [{"precision": "qlora"}, {"precision": "nvfp4"}, {"precision": "bfloat16"}], ids=str)
def test_packed_models_are_those_models(stack):
    models = [rack({}, stack).build(seed) for seed in range(2)]
    for model, logits in zip(models, Pack(models)(TOKENS), strict=True):
        torch.testing.assert_close(logits, model(TOKENS), rtol=1e-4, atol=0.02 if stack["precision"] == "bfloat16" else 1e-5)


def test_stored_weights_come_back():
    model = rack({"precision": "nvfp4", "stored": True}).build()
    linear = model.stacks[0].blocks[0].mlp.up
    assert torch.equal(dequantised(linear).weight, linear.weight)
