"""Narrower channel mixers from a trained one: the channels that matter, in their order, with their biases."""

import pytest
import torch

from configs import ConfigError
from models import CHANNEL_MIXERS, RackSpec, Supernet
from models.linears.adapters import AdaptedLinear, Adapter
from models.supernet.from_attention import initialise_supernet
from models.supernet.from_channels import keep_channels
from tests.models.cases import D_MODEL, build, noise

D_FF = 24
X = noise(3, 7, D_MODEL)
WIDE = {
    "mlp": {"kind": "mlp"},
    "mlp-bias": {"kind": "mlp", "bias": True},
    "swiglu": {"kind": "swiglu"},
    "geglu-bias": {"kind": "swiglu", "activation": "gelu_tanh", "bias": True},
}
each_kind = pytest.mark.parametrize("options", WIDE.values(), ids=WIDE)


def trained(options, d_ff=D_FF):
    """No parameter is at a special value."""
    mixer = build(CHANNEL_MIXERS, {**options, "d_ff": d_ff}, seed=5)
    with torch.no_grad():
        for index, parameter in enumerate(mixer.parameters()):
            parameter.add_(noise(*parameter.shape, seed=index), alpha=0.2)
    return mixer


def with_dead(mixer, channels):
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name == "down.weight":
                parameter[:, channels] = 0
            elif not name.startswith("down."):
                parameter[channels] = 0
    return mixer


@each_kind
def test_keeping_all_channels_is_the_same_function(options):
    wide, target = trained(options), build(CHANNEL_MIXERS, {**options, "d_ff": D_FF}, seed=9)
    assert keep_channels(wide, target) == "24 of 24"
    assert torch.equal(target(X), wide(X))
    assert all(torch.equal(own, theirs) for own, theirs in zip(target.parameters(), wide.parameters(), strict=True))


@each_kind
def test_what_is_left_of_a_mixer_with_dead_channels_is_all_of_it(options):
    dead = [0, 3, 4, 11, 23]
    wide, target = with_dead(trained(options), dead), build(CHANNEL_MIXERS, {**options, "d_ff": D_FF - len(dead)}, seed=9)
    assert keep_channels(wide, target) == "19 of 24"
    torch.testing.assert_close(target(X), wide(X), rtol=1e-5, atol=1e-5)
    alive = [channel for channel in range(D_FF) if channel not in dead]
    assert torch.equal(target.up.weight, wide.up.weight[alive])  # in their order


@pytest.mark.parametrize("factor", ["up", "gate", "down"])
def test_a_channel_matters_by_what_it_reads_and_by_what_it_writes(factor):
    wide, target = trained(WIDE["swiglu"]), build(CHANNEL_MIXERS, {"kind": "swiglu", "d_ff": 1})
    weight = getattr(wide, factor).weight.data
    (weight.T if factor == "down" else weight)[7] *= 100
    keep_channels(wide, target)
    assert torch.equal(target.up.weight, wide.up.weight[[7]])


def test_a_channel_that_reads_its_bias_alone_matters():
    wide, target = trained(WIDE["mlp-bias"], d_ff=2), build(CHANNEL_MIXERS, {**WIDE["mlp-bias"], "d_ff": 1})
    with torch.no_grad():
        wide.up.weight[1], wide.up.bias[1] = 0, 100
    keep_channels(wide, target)
    torch.testing.assert_close(target.up.bias, torch.tensor([100.0]))


def test_a_bias_that_the_target_lacks_is_told_and_one_that_the_trained_one_lacks_is_zero():
    plain, biased = WIDE["mlp"], WIDE["mlp-bias"]
    target = build(CHANNEL_MIXERS, {**plain, "d_ff": 8})
    assert keep_channels(trained(biased), target) == "8 of 24; dropped up.bias, down.bias"
    wide, target = trained(plain), build(CHANNEL_MIXERS, {**biased, "d_ff": D_FF})
    target.up.bias.data.fill_(3)
    keep_channels(wide, target)
    torch.testing.assert_close(target(X), wide(X), rtol=1e-5, atol=1e-5)


def test_what_adapters_add_is_in_the_weights():
    wide, target = trained(WIDE["mlp"]), build(CHANNEL_MIXERS, {**WIDE["mlp"], "d_ff": D_FF})
    adapter = Adapter(D_MODEL, D_FF, rank=2, alpha=3.0)
    adapter.up.data.copy_(noise(D_FF, 2))
    wide.up = AdaptedLinear(wide.up, {"lora": adapter})
    keep_channels(wide, target)
    torch.testing.assert_close(target(X), wide(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "mlp"}, "MLP cannot start from this SwiGLU: it is of another kind"),
        ({"kind": "identity"}, "Identity cannot start from this SwiGLU: it is of another kind"),
        ({"kind": "swiglu", "activation": "gelu_tanh"}, "activation = gelu_tanh, not silu"),
        ({"kind": "swiglu", "d_ff": 25}, "d_ff = 25, more than 24"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_and_nothing_changed(options, text):
    target = build(CHANNEL_MIXERS, options)
    before = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    with pytest.raises(ConfigError) as caught:
        keep_channels(trained(WIDE["swiglu"]), target)
    assert text in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.named_parameters())


def test_a_supernet_says_of_each_choice_how_many_channels_it_has():
    parts = {"wide": {"d_ff": 24}, "narrow": {"d_ff": 8}, "wider": {"d_ff": 48}, "other": {"kind": "rwkv"}, "none": None}
    mixers = {name: part and {"kind": "swiglu", **part} for name, part in parts.items()}
    block = {"mixer": "attention", "mlp": {"kind": "stochastic", "main": "wide", "mixers": mixers}}
    space = RackSpec(vocab_size=8, d_model=D_MODEL, stacks=[{"n_blocks": 2, "block": block}])
    model = space.place("all:wide").build(seed=11)
    supernet = Supernet(space, seed=3)
    fresh = supernet.rack.blocks()[1].mlp.mixers["wider"].up.weight.clone()
    texts = {origin.name: origin.text for origin in initialise_supernet(supernet, model.state_dict())}
    assert texts == {
        "wide": "trained",
        "narrow": "from the channels that matter most: 8 of 24",
        "wider": "its own: SwiGLU cannot start from this SwiGLU: d_ff = 48, more than 24",
        "other": "its own: RWKV cannot start from this SwiGLU: it is of another kind",
        "none": "its own: only mixers can start from the main choice if that is an attention, and channel mixers from another",
    }
    choice = supernet.rack.blocks()[1].mlp.mixers
    assert {tuple(row) for row in choice["narrow"].up.weight.tolist()} < {tuple(row) for row in choice["wide"].up.weight.tolist()}
    assert torch.equal(choice["wider"].up.weight, fresh)
