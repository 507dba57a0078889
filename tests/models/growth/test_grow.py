"""Growth of racks with weights: what goes on, what starts, what is converted, what is refused."""

import pytest
import torch

from models import CHANNEL_MIXERS, MIXERS, RackSpec, StackSpec
from models.growth.edit_spec import (
    stack_uids,
    with_stack,
    with_stack_replaced,
    with_stacks_fused,
    without_stack,
)
from models.growth.grow import grow
from models.linears.adapters import is_adapter
from models.spec.parameters import LoraSpec, learning_rate_scales
from tests.models.edits import untied, with_stack_fields

ATTENTION = {"kind": "attention", "n_heads": 2}
MLP = {"kind": "mlp", "d_ff": 24}
BLOCK = {"mixer": ATTENTION, "mlp": MLP}
TOKENS = torch.arange(24).view(2, 12) % 7
NEW = StackSpec(n_blocks=1, block=BLOCK)
SECOND = LoraSpec(rank=2)
QLORA = {"precision": "qlora", "stored": True, "lora": LoraSpec(rank=3), "progressive_lora": SECOND}


def rack(n_stacks=2, **keys):
    return RackSpec(
        **{"vocab_size": 8, "d_model": 16, "max_length": 12, "stacks": [{"n_blocks": 1, "block": BLOCK}] * n_stacks, **keys}
    )


def trained(spec, seed=0):
    """Weights that are not as any rack starts."""
    model, generator = spec.build(seed), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_same_as_built(model, spec):
    """By names, shapes, types, marks, and then, with the same weights, by the function."""
    built = spec.build(5)
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in built.state_dict().items()
    ]
    theirs = dict(built.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == theirs[name].requires_grad, name
        assert vars(parameter) == vars(theirs[name]), name
    built.load_state_dict(model.state_dict())
    t = None if spec.time is None else torch.tensor([0, 2])
    assert torch.equal(model(TOKENS, t=t), built(TOKENS, t=t))
    assert [stack.uid for stack in model.stacks] == list(stack_uids(spec))
    assert [block.compute_dtype for block in model.blocks()] == [block.compute_dtype for block in built.blocks()]


CHANGES = {
    "append": lambda spec: with_stack(spec, NEW, position=len(spec.stacks)),
    "prepend": lambda spec: with_stack(spec, NEW, position=0),
    "insert in few bits": lambda spec: with_stack(spec, NEW.model_copy(update={"precision": "qlora"}), position=1),
    "remove": lambda spec: without_stack(spec, 1),
    "replace": lambda spec: with_stack_replaced(spec, 0, NEW),
    "fuse": lambda spec: with_stacks_fused(spec, (0, 1)),
    "untie": untied,
    "time": lambda spec: RackSpec(**{**spec.to_dict(), "time": {"n_steps": 3, "d_time": 4}}),
    "learned time": lambda spec: RackSpec(**{**spec.to_dict(), "time": {"kind": "learned", "n_steps": 3, "d_time": 4}}),
    "freeze": lambda spec: with_stack_fields(spec, 0, lr_scale=0.0),
    "store": lambda spec: with_stack_fields(spec, 1, precision="nvfp4", stored=True),
    "train as stored": lambda spec: with_stack_fields(spec, 1, precision="fp8"),
    "half": lambda spec: with_stack_fields(spec, 0, precision="half"),
    "store half": lambda spec: with_stack_fields(spec, 0, precision="half", stored=True),
    "adapt": lambda spec: with_stack_fields(spec, 0, progressive_lora=LoraSpec(rank=2, trains=False)),
    "adapt all": lambda spec: RackSpec(**{**spec.to_dict(), "lora": {"rank": 2, "fit": True}, "tie_embeddings": False}),
    "a trunk": lambda spec: with_stack(with_stack_fields(spec, 1, **QLORA), NEW, position=2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_grown_rack_is_one_that_its_spec_builds(name):
    before = rack(tie_embeddings=True)
    after = CHANGES[name](before)
    assert after != before
    check_same_as_built(grow(trained(before), before, after, seed=1), after)


def test_growth_upon_growth():
    """A trunk that is stored, adapted twice, frozen, added to below and above, put together and cut."""
    spec = rack(1, tie_embeddings=True)
    model = trained(spec)
    for change in (
        lambda spec: untied(with_stack(with_stack_fields(spec, 0, precision="nvfp4"), NEW, position=0)),
        lambda spec: with_stack_fields(spec, 1, progressive_lora=LoraSpec(rank=2, trains=False)),
        lambda spec: with_stack(with_stack_fields(with_stack_fields(spec, 1, **QLORA), 0, **QLORA), NEW, position=2),
        lambda spec: with_stacks_fused(spec, (1, 0)),
        lambda spec: with_stack_fields(spec, 1, lora=LoraSpec(rank=3, alpha=1.0, dropout=0.0, rslora=True)),
        lambda spec: with_stack_replaced(with_stack_fields(spec, 1, lr_scale=0.0, progressive_lora=SECOND), 2, NEW),
        lambda spec: without_stack(spec, 1),
    ):
        before, spec = spec, change(spec)
        model = grow(model, before, spec, seed=4, init="random")
        check_same_as_built(model, spec)
    assert stack_uids(spec) == (3,)


def test_what_was_there_is_the_same_parameters():
    before = rack(tie_embeddings=True)
    model = trained(before)
    expected, values = dict(model.named_parameters()), copied(model)
    after = untied(with_stack(with_stack_fields(before, 1, progressive_lora=SECOND), NEW, position=0))
    grown = grow(model, before, after, seed=0, init="random")
    found = dict(grown.named_parameters())
    for name, parameter in expected.items():
        place = name.replace("stacks.1.", "stacks.2.").replace("stacks.0.", "stacks.1.")
        assert found[place] is parameter
        assert torch.equal(parameter, values[name])
    assert torch.equal(found["head.output.weight"], found["embedding.weight"])
    assert found["head.output.weight"] is not found["embedding.weight"]


PRECISIONS = ("full", "half", "qlora", "nvfp4")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("half", "kind"), [("mixer", kind) for kind in MIXERS] + [("mlp", kind) for kind in CHANNEL_MIXERS])
def test_a_new_stack_adds_nothing_at_first_and_learns(half, kind, precision):
    part = {"kind": kind}
    if kind == "stochastic":
        choices = {"a": ATTENTION, "b": {"kind": "lru"}} if half == "mixer" else {"a": MLP, "b": None}
        part |= {"main": "a", "mixers": choices}
    block = {half: part, f"{half}_post_norm": "layernorm" if precision == "half" else None}
    before = rack(1)
    after = with_stack(before, StackSpec(n_blocks=1, block=block, precision=precision), position=1)
    stack = grow(trained(before), before, after, seed=2).stacks[1]
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = stack(x)
    assert torch.equal(y, x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    moving = [name for name, parameter in stack.named_parameters() if parameter.grad is not None and parameter.grad.any()]
    assert moving or (kind == "identity" and precision == "qlora"), "with adapters alone there is nothing in it that could learn"
    with torch.no_grad():
        for parameter in stack.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
    assert torch.equal(stack(x), x) != bool(moving)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_behind_a_post_norm_the_gradient_is_of_ordinary_size(norm, lora):
    """A norm of zeros divides by the root of its eps: with what is drawn the other way round, gradients are hundreds."""
    block = {**BLOCK, "mixer_post_norm": norm, "mlp_post_norm": norm}
    before = rack(1)
    after = with_stack(before, StackSpec(n_blocks=2, block=block, lora=lora), position=1)
    stack = grow(trained(before), before, after, seed=2).stacks[1]
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    y = stack(x)
    assert torch.equal(y, x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    gradients = [each.grad for each in stack.parameters() if each.grad is not None]
    assert any(gradient.any() for gradient in gradients), "what trains, be it adapters alone, learns from the first step on"
    if lora is None:
        assert sum(gradient.square().sum() for gradient in gradients).sqrt() < 50
        assert stack.blocks[0].mlp.down.weight.any()


def test_biases_add_nothing_either():
    ones = {"init": {"kind": "fill", "value": 1.0}}
    block = {"mixer": "hyena", "mlp": {"kind": "mlp", "bias": True}, "mlp_post_norm": "layernorm", "norm": "layernorm"}
    said = {"blocks.0.mixer.output.bias": ones, "blocks.0.mlp.down.bias": ones, "blocks.0.mlp_post_norm.bias": ones}
    before = rack(1)
    after = with_stack(before, StackSpec(n_blocks=1, block=block, parameters=said), position=1)
    stack = grow(trained(before), before, after, seed=2).stacks[1]
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stack(x), x)
    assert not torch.equal(grow(trained(before), before, after, seed=2, init="random").stacks[1](x), x)


def test_nothing_is_added_where_there_is_nothing_to_silence():
    before = rack(1)
    alone = with_stack(before, StackSpec(n_blocks=1, block={"mixer": "identity", "mixer_norm": None}), position=1)
    choice = {"kind": "stochastic", "main": "a", "mixers": {"a": ATTENTION, "b": {"kind": "identity"}}}
    for after in (alone, with_stack(before, StackSpec(n_blocks=1, block={"mixer": choice}), position=1)):
        with pytest.raises(ValueError, match="Identity has no linear that ends it"):
            grow(before.build(), before, after, seed=0)
        assert grow(before.build(), before, after, seed=0, init="random")


@pytest.mark.parametrize("position", [0, 1, 2])
def test_growth_changes_no_output(position):
    before = rack(tie_embeddings=True)
    model = trained(before)
    expected = model(TOKENS)
    after = with_stack(with_stack_fields(untied(before), 0, lora=SECOND, progressive_lora=SECOND), NEW, position=position)
    assert torch.equal(grow(model, before, after, seed=1)(TOKENS), expected)


def test_a_fused_stack_is_the_same_function():
    before = rack(3)
    model = trained(before)
    model.stacks[1].checkpointing = True
    expected = model(TOKENS)
    grown = grow(model, before, with_stacks_fused(before, (1, 2)), seed=0)
    assert torch.equal(grown(TOKENS), expected)
    assert [stack.checkpointing for stack in grown.stacks] == [False, True]


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_a_rack_that_is_told_the_time_goes_on_as_it_was(kind):
    before = rack()
    model = trained(before)
    expected = model(TOKENS)
    after = RackSpec(**{**before.to_dict(), "time": {"kind": kind, "n_steps": 3, "d_time": 4}})
    grown = grow(model, before, after, seed=1)
    assert torch.equal(grown(TOKENS, t=torch.tensor([0, 2])), expected)
    again = grow(grown, after, with_stack(after, NEW, position=0), seed=1)
    assert again.time_embedding is grown.time_embedding


def weights(model, uid):
    return {name: tensor for stack in model.stacks if stack.uid == uid for name, tensor in stack.state_dict().items()}


def test_a_new_stack_depends_on_the_seed_and_its_uid_alone():
    """Not on where it stands, nor on what else comes or is adapted with it; and nobody else's generator moves."""
    before = rack(1)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    new = NEW.model_copy(update={"lora": LoraSpec(rank=2)})
    above, below = (with_stack(before, new, position=position) for position in (1, 0))
    more = with_stack(with_stack_fields(below, 0, progressive_lora=SECOND), NEW, position=0)
    found = [weights(grow(trained(before), before, after, seed=3, init="random"), 1) for after in (above, below, more)]
    assert torch.equal(torch.rand(2), expected)
    for other in found[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in found[0].items())
    for other in (
        weights(grow(trained(before), before, above, seed=4, init="random"), 1),
        weights(grow(trained(before), before, more, seed=3, init="random"), 2),
    ):
        name = "blocks.0.mlp.up.weight"
        assert not torch.equal(other[name], found[0][name])
    assert found[0]["blocks.0.mlp.up.adapters.lora.down"].std() > 0


@pytest.mark.parametrize(("init", "uid"), [("copy_last", 2), ("copy_middle", 1)])
@pytest.mark.parametrize("stored", [False, True])
def test_a_copy_has_the_weights_and_what_adapters_add(init, uid, stored):
    keys = {"precision": "fp8", "stored": stored, "lora": {"rank": 2, "alpha": 3}}
    before = rack(stacks=[{"n_blocks": 1, "block": BLOCK}, *[{"n_blocks": 1, "block": BLOCK, **keys}] * 2])
    model = trained(before)
    source = model.stacks[uid].blocks[0].mlp.up
    expected = source.weight + source.adapters["lora"].weight()
    grown = grow(model, before, with_stack(before, NEW, position=0), seed=0, init=init)
    assert torch.equal(grown.stacks[0].blocks[0].mlp.up.weight, expected)
    assert torch.equal(grown.stacks[0].blocks[0].mlp_norm.weight, model.stacks[uid].blocks[0].mlp_norm.weight)
    assert grown.stacks[0].blocks[0].mlp.up.weight is not source.weight
    x = model.embed(TOKENS)
    if stored:
        torch.testing.assert_close(grown.stacks[0](x), model.stacks[uid](x), rtol=1e-5, atol=1e-5)


def test_a_copy_is_taken_before_the_trunk_is_stored():
    before = rack(1)
    model = trained(before)
    expected = model.stacks[0].blocks[0].mlp.up.weight.detach().clone()
    after = with_stack(with_stack_fields(before, 0, precision="qlora"), NEW, position=1)
    grown = grow(model, before, after, seed=0, init="copy_last")
    assert torch.equal(grown.stacks[1].blocks[0].mlp.up.weight, expected)
    assert not torch.equal(grown.stacks[0].blocks[0].mlp.up.weight, expected)


def test_adapters_come_once_however_often_a_rack_grows():
    spec = rack(1)
    model, seen = trained(spec), {}
    for _ in range(3):
        before = spec
        for uid in stack_uids(before):
            spec = with_stack_fields(spec, uid, **QLORA)
        spec = with_stack(spec, NEW.model_copy(update={"lora": LoraSpec(rank=3, trains=False)}), position=0)
        model = grow(model, before, spec, seed=1)
        for name, parameter in model.named_parameters():
            if ".adapters." in name:
                uid = model.stacks[int(name.split(".")[1])].uid
                assert seen.setdefault((uid, name.partition("blocks")[2]), parameter) is parameter
    for index, stack in enumerate(model.stacks):
        names = {name.partition("adapters.")[2] for name, _ in stack.named_parameters() if is_adapter(name)}
        both = {"lora.up", "lora.down", "progressive.up", "progressive.down"}
        assert names == ({"lora.up", "lora.down"} if index == 0 else both)
    linear = model.stacks[2].blocks[0].mixer.query
    assert linear.adapters["lora"].down.shape[0] == 3
    assert linear.adapters["progressive"].down.shape[0] == 2
    assert len(seen) == 2 * 6 * 4 + 2 * 6 * 3


def test_a_stored_trunk_trains_its_adapters_alone_also_after_an_evaluation():
    before = rack(1)
    after = with_stack(with_stack_fields(before, 0, **QLORA), NEW, position=1)
    model = grow(trained(before), before, after, seed=1)
    with torch.no_grad():
        model.eval()(TOKENS)
    model.train()
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.3)
    start = copied(model)
    for _ in range(2):  # until the second, new linears end in zero
        optimizer.zero_grad()
        model(TOKENS).square().sum().backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    trunk = {name for name in start if name.startswith("stacks.0.")}
    assert changed & trunk == {name for name in trunk if is_adapter(name)}
    assert {name for name in start if name.startswith("stacks.1.")} <= changed


def test_old_marks_go():
    before = with_stack_fields(rack(), 0, lr_scale=0.0, weight_decay=0.5)
    model = trained(before)
    assert not model.stacks[0].blocks[0].mlp.up.weight.requires_grad
    after = with_stack_fields(before, 0, lr_scale=1.0, weight_decay=None)
    grown = grow(model, before, after, seed=0)
    assert all(parameter.requires_grad and not vars(parameter) for parameter in grown.parameters())
    frozen = with_stack_fields(after, 1, lr_scale=0.0)
    scales = learning_rate_scales(grow(grown, after, frozen, seed=0))
    assert {name.partition(".blocks")[0] for name, scale in scales.items() if scale == 0} == {"stacks.1"}


def test_what_may_change_in_an_adapter_does():
    before = with_stack_fields(rack(1), 0, lora=LoraSpec(rank=4))
    model = trained(before)
    adapter = model.stacks[0].blocks[0].mlp.up.adapters["lora"]
    assert adapter.scale == 1
    grow(model, before, with_stack_fields(before, 0, lora=LoraSpec(rank=4, alpha=8, dropout=0.5, rslora=True)), seed=0)
    assert (adapter.scale, adapter.dropout.p) == (4, 0.5)


def test_the_mode_is_kept():
    before = rack(1)
    grown = grow(trained(before).eval(), before, with_stack(before, NEW, position=0), seed=0)
    assert not any(module.training for module in grown.modules())


STORED = with_stack_fields(rack(), 0, **QLORA)
FAKE = with_stack_fields(rack(), 0, precision="nvfp4")


def changed(spec, **keys):
    return RackSpec(**{**spec.to_dict(), **keys})


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (rack(), changed(rack(), d_model=32), "d_model = 16 cannot become 32"),
        (rack(), changed(rack(), vocab_size=9), "vocab_size = 8 cannot become 9"),
        (rack(), changed(rack(), embedding={"kind": "token", "scale": 2.0}), "the embedding cannot become another one"),
        (rack(), changed(rack(), head={"kind": "language_model", "bias": True}), "the head cannot become another one"),
        (rack(), changed(rack(), tie_embeddings=True), "cannot be tied to the embedding again"),
        (changed(rack(), time={"n_steps": 3, "d_time": 4}), rack(), "the time embedding cannot go"),
        (rack(), rack(stacks=[{"n_blocks": 2, "block": BLOCK}] * 2), "stack 0: its blocks differ"),
        (rack(), changed(rack(), parameters={"*.up": {"bias": True}}), "blocks.0.mlp.up: a bias cannot come or go"),
        (STORED, with_stack_fields(STORED, 0, precision="nvfp4"), "stack 0: its weights are stored as nf4, and stay so"),
        (STORED, with_stack_fields(STORED, 0, precision="full", stored=False), "stored as nf4, and stay so"),
        (STORED, with_stack_fields(STORED, 0, progressive_lora=None), "adapter 'progressive' would be lost"),
        (STORED, with_stack_fields(STORED, 0, lora=LoraSpec(rank=4)), "adapter 'lora' has rank 3, which cannot become 4"),
        (FAKE, with_stack_fields(FAKE, 0, precision="full"), "trained as nvfp4: as 'full' it would be another function"),
        (
            rack(stacks=[{"n_blocks": 1, "block": {**BLOCK, "share": "x"}}]),
            rack(2, stacks=[{"n_blocks": 1, "block": {**BLOCK, "share": "x"}}] * 2),
            "stack 1 is new, but shares 'x' with stack 0",
        ),
        (
            rack(),
            with_stack(rack(), StackSpec(n_blocks=2, block=BLOCK), position=0),
            "can only be copied from one of the same blocks",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused_and_nothing_changes(before, after, text):
    model = trained(before)
    state, types = copied(model), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=text):
        grow(model, before, after, seed=0, init="copy_last")
    assert [type(module) for module in model.modules()] == types
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_rack_of_another_spec_and_another_start_are_refused():
    after = with_stack(rack(), NEW, position=0)
    with pytest.raises(ValueError, match="not of the spec that it is to grow out of"):
        grow(rack(1).build(), rack(), after, seed=0)
    with pytest.raises(ValueError, match="init = 'zero' must be one of identity, random, copy_last, copy_middle"):
        grow(rack().build(), rack(), after, seed=0, init="zero")
