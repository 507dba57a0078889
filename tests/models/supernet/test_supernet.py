"""Supernets: every subnet is the rack it stands for, to the last bit, and what is not active is not touched."""

import itertools

import pytest
import torch

from configs import ConfigError
from models import CHANNEL_MIXERS, MIXERS, RackSpec, Supernet
from models.spec.placement import main_placement
from tests.models.cases import REQUIRED, noise

SIZES = {"vocab_size": 8, "d_model": 16, "max_length": 12}
ATTENTION = {"kind": "attention", "n_heads": 2}
GDN = {"kind": "gated_delta_net", "n_heads": 2}
MIXED = {"kind": "stochastic", "main": "attention", "mixers": {"gdn": GDN, "attention": ATTENTION}}
NARROW = {"kind": "mlp", "d_ff": 4}
MLPS = {"kind": "stochastic", "main": "wide", "mixers": {"none": None, "wide": {"kind": "swiglu"}, "narrow": NARROW}}
TOKENS = torch.arange(24).view(2, 12) % 7
ALL_MIXERS = {kind: {"kind": kind} for kind in MIXERS if kind not in REQUIRED["mixer"]}
ALL_CHANNEL_MIXERS = {kind: {"kind": kind} for kind in CHANNEL_MIXERS if kind not in REQUIRED["channel mixer"]}


def space(n_blocks=2, *, mixer=MIXED, mlp=MLPS, block=(), **keys):
    stack = {"n_blocks": n_blocks, "block": {"mixer": mixer, "mlp": mlp, **dict(block)}}
    return RackSpec(**{**SIZES, "stacks": [stack], **keys})


def moved(model, seed=7):
    """The model with weights of which none is at a special value, as after training."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(noise(*parameter.shape, seed=seed + index), alpha=0.1)
    return model


def test_the_main_placement_is_active_until_another_is_and_again_in_evaluation():
    supernet = Supernet(space())
    assert supernet.training
    assert supernet.active == supernet.main == ("attention", "wide") * 2
    supernet.activate("gdn, wide, attention, none")
    assert supernet.active == ("gdn", "wide", "attention", "none")
    before = supernet(TOKENS)
    supernet.eval()
    assert supernet.active == supernet.main
    assert not torch.equal(supernet(TOKENS), before)
    supernet.activate(("gdn", "wide", "attention", "none"))
    assert torch.equal(supernet(TOKENS), before)


def test_a_placement_that_does_not_fit_changes_nothing():
    supernet = Supernet(space())
    for wrong in ("gdn", ("gdn", "wide", "gdn", "gdn")):
        with pytest.raises(ConfigError, match="placement"):
            supernet.activate(wrong)
        with pytest.raises(ConfigError, match="placement"):
            supernet.extract(wrong)
        assert supernet.active == supernet.main


def test_every_mixer_of_every_layer_has_weights_of_its_own():
    supernet = Supernet(space(mixer={**MIXED, "mixers": {"first": ATTENTION, "second": ATTENTION}, "main": "first"}))
    weights = [value for name, value in supernet.named_parameters() if name.endswith("query.weight")]
    assert len({value.data_ptr() for value in weights}) == 4
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(weights, 2))


@pytest.mark.parametrize(
    ("keys", "block"),
    [
        ({}, {}),
        ({"tie_embeddings": True}, {}),
        ({"norm": "layernorm"}, {"mixer_post_norm": "layernorm", "mlp_post_norm": "layernorm", "output_scale": 0.5}),
        ({"init_std": 0.1}, {"dropout": 0.3, "norm": None}),
        ({"head": "autoencoder"}, {"norm": "rmsnorm"}),
    ],
    ids=str,
)
def test_what_is_extracted_is_the_active_subnet_to_the_last_bit(keys, block):
    supernet = moved(Supernet(space(block=block, **keys))).eval()
    found = []
    for placement in itertools.islice(itertools.product(*(slot.names for slot in supernet.slots)), 0, None, 7):
        supernet.activate(placement)
        rack = supernet.extract(placement)
        assert torch.equal(rack(TOKENS), supernet(TOKENS)), placement
        assert not rack.training
        plain = supernet.space.place(placement).build()
        assert {name: value.shape for name, value in rack.named_parameters()} == {
            name: value.shape for name, value in plain.named_parameters()
        }
        found.append(rack(TOKENS))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(found, 2))


def test_every_registered_mixer_is_extracted_to_the_last_bit():
    choices = {"kind": "stochastic", "main": "attention", "mixers": ALL_MIXERS}
    mlps = {"kind": "stochastic", "main": "mlp", "mixers": ALL_CHANNEL_MIXERS}
    supernet = moved(Supernet(space(1, mixer=choices, mlp=mlps, tie_embeddings=True))).eval()
    for placement in itertools.product(ALL_MIXERS, ALL_CHANNEL_MIXERS):
        supernet.activate(placement)
        assert torch.equal(supernet.extract(placement)(TOKENS), supernet(TOKENS)), placement


def test_what_is_extracted_is_a_copy():
    supernet = Supernet(space(tie_embeddings=True))
    rack = supernet.extract(supernet.main)
    assert rack.training
    assert rack.head.output.weight is rack.embedding.weight
    before = supernet(TOKENS)
    moved(rack)
    assert torch.equal(supernet(TOKENS), before)


def test_what_is_extracted_has_the_precision_of_the_supernet():
    supernet = moved(Supernet(space())).to(torch.float64).eval()
    rack = supernet.extract(supernet.main)
    assert rack.embedding.weight.dtype == torch.float64
    assert torch.equal(rack(TOKENS), supernet(TOKENS))


def test_what_is_not_active_has_no_gradient():
    """Not zeros: an optimizer would decay weights and moments of zeros."""
    supernet = Supernet(space())
    supernet.activate("gdn, none, attention, narrow")
    supernet(TOKENS).square().sum().backward()
    active = ("0.mixer.mixers.gdn", "1.mixer.mixers.attention", "1.mlp.mixers.narrow")
    idle = ("0.mlp_norm",)  # nothing to normalise for
    for name, parameter in supernet.named_parameters():
        selected = any(part in name for part in active) or (".mixers." not in name and not any(part in name for part in idle))
        assert (parameter.grad is not None) == selected, name
        if selected:
            assert parameter.grad.abs().sum() > 0, name


def test_a_parameter_that_was_never_selected_is_bitwise_unchanged_under_weight_decay():
    supernet = Supernet(space(1, mlp=None))
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=0.01, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in supernet.named_parameters()}
    for _ in range(50):
        optimizer.zero_grad(set_to_none=True)
        supernet(TOKENS).square().sum().backward()
        optimizer.step()
    for name, parameter in supernet.named_parameters():
        assert torch.equal(parameter, before[name]) == (".gdn." in name), name
        assert (parameter in optimizer.state) == (".gdn." not in name), name


def test_a_channel_mixer_may_be_left_out():
    supernet = moved(Supernet(space(1, mixer=ATTENTION, block={"mlp_post_norm": "layernorm"})))
    supernet.activate("none")
    (block,) = supernet.rack.blocks()
    x = noise(2, 5, 16)
    assert torch.equal(block(x), x + block.mixer(block.mixer_norm(x)))  # and no bias of the post-norm
    assert not block.mlp(x).any()
    assert block.mlp.flops(5) == 0


def test_costs_and_steps_of_a_choice_are_those_of_the_active_part():
    supernet = moved(Supernet(space(1, mixer={**MIXED, "mixers": {**MIXED["mixers"], "hyena": {"kind": "hyena"}}})))
    ((choice, mlp),) = [(block.mixer, block.mlp) for block in supernet.rack.blocks()]
    x = noise(2, 6, 16)
    for name in choice.names:
        supernet.activate((name, "narrow"))
        part = choice.mixers[name]
        assert (choice.has_step, choice.flops(6), choice.state_size(6)) == (part.has_step, part.flops(6), part.state_size(6))
        assert torch.equal(choice(x), part(x))
        if part.has_step:
            stepped, _ = choice.step(x[:, 0], choice.initial_state(2))
            assert torch.equal(stepped, part.step(x[:, 0], part.initial_state(2))[0])
    assert mlp.flops(6) == mlp.mixers["narrow"].flops(6)


TWO_OF_A_KIND = {
    "near": {**ATTENTION, "window": 2},
    "far": {**ATTENTION, "window": 5},
    "all": ATTENTION,
    "fast": {**ATTENTION, "rope_base": 2.0},
    "slow": {**ATTENTION, "rope_base": 1e6},
}


def test_what_a_mixer_prepares_is_its_own():
    """A window's mask must not serve the full attention, nor one rotary base the other: in any order, and in one rack."""
    choices = {"kind": "stochastic", "main": "all", "mixers": TWO_OF_A_KIND}
    supernet = Supernet(space(2, mixer=choices, mlp=None)).eval()
    for path in ("near", "far", "fast", "slow"):  # the same weights, so that the settings are all that differs
        for block in supernet.rack.blocks():
            block.mixer.mixers[path].load_state_dict(block.mixer.mixers["all"].state_dict())
    alone = {}
    for placement in itertools.product(TWO_OF_A_KIND, repeat=2):
        alone[placement] = supernet.extract(placement).eval()(TOKENS)
    for placement in [*alone, *reversed(alone)]:
        supernet.activate(placement)
        assert torch.equal(supernet(TOKENS), alone[placement]), placement
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(alone.values(), 2))


def test_a_thinned_supernet_has_the_union_of_the_placements_and_their_outputs():
    supernet = moved(Supernet(space(3, tie_embeddings=True), seed=3)).eval()
    kept = ["gdn, wide, attention, none, gdn, narrow", ("gdn", "narrow", "gdn", "none", "gdn", "wide")]
    thin = supernet.thin(kept)
    assert [slot.names for slot in thin.slots] == [
        ("gdn",),
        ("wide", "narrow"),
        ("gdn", "attention"),
        ("none",),
        ("gdn",),
        ("wide", "narrow"),
    ]
    assert thin.main == ("gdn", "wide", "attention", "none", "gdn", "wide") == thin.active
    assert not thin.training
    for placement in itertools.product(*(slot.names for slot in thin.slots)):
        thin.activate(placement)
        supernet.activate(placement)
        assert torch.equal(thin(TOKENS), supernet(TOKENS)), placement
    assert torch.equal(thin.extract(placement)(TOKENS), supernet(TOKENS))
    with pytest.raises(ConfigError, match="layer 0 has no 'attention'; Known: gdn"):
        thin.activate(supernet.main)


def test_a_supernet_is_thinned_to_something():
    with pytest.raises(ConfigError, match="none is given"):
        Supernet(space()).thin([])


def test_a_rack_without_slots_is_a_supernet_of_one():
    spec = space().place("gdn, wide, attention, none")
    supernet = Supernet(spec, seed=5)
    assert supernet.slots == supernet.main == supernet.active == ()
    assert torch.equal(supernet(TOKENS), spec.build(5)(TOKENS))
    assert torch.equal(supernet.extract(())(TOKENS), supernet(TOKENS))


def test_the_same_seed_gives_the_same_supernet():
    first, second, other = Supernet(space(), 1), Supernet(space(), 1), Supernet(space(), 2)
    assert torch.equal(first(TOKENS), second(TOKENS))
    assert not torch.equal(first(TOKENS), other(TOKENS))
    assert main_placement(first.slots) == first.main
