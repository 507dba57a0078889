"""Spaces: the slots of a rack, their order, and the rack that a placement makes of it."""

import json

import pytest
import torch

from configs import ConfigError
from configs.load import validate
from models import RackSpec, Slot, Supernet
from models.assembly.cost import cost
from models.spec.placement import main_placement

SIZES = {"vocab_size": 8, "d_model": 16}
ATTENTION = {"kind": "attention", "n_heads": 2}
WINDOW = {**ATTENTION, "window": 4}
GDN = {"kind": "gated_delta_net", "n_heads": 2}
MLP = {"kind": "mlp", "d_ff": 8}
MIXERS = {"window": WINDOW, "attention": ATTENTION, "gdn": GDN}


def stochastic(mixers=MIXERS, main="attention", **fields):
    return {"kind": "stochastic", "main": main, "mixers": mixers, **fields}


MLPS = stochastic({"wide": {"kind": "swiglu", "d_ff": 16}, "none": None, "narrow": MLP}, "wide")


def space(*blocks, **keys):
    return validate(RackSpec, {**SIZES, "stacks": [{"blocks": list(blocks)}], **keys}, "space")


def problem(*blocks, **keys):
    with pytest.raises(ConfigError) as caught:
        space(*blocks, **keys)
    (line,) = str(caught.value).splitlines()
    return line


def test_slots_are_in_the_order_of_the_data_flow():
    first = {"n_blocks": 2, "block": {"mixer": stochastic(), "mlp": MLPS}}
    second = {"pattern": ["a", "b"], "blocks": {"a": {"mixer": GDN, "mlp": MLP}, "b": {"mixer": stochastic(), "mlp": MLP}}}
    found = space(stacks=[first, second]).slots()
    mixer, mlp = ("window", "attention", "gdn"), ("wide", "none", "narrow")
    assert found == (
        Slot(0, "mixer", mixer, "attention"),
        Slot(0, "mlp", mlp, "wide"),
        Slot(1, "mixer", mixer, "attention"),
        Slot(1, "mlp", mlp, "wide"),
        Slot(3, "mixer", mixer, "attention"),
    )
    assert main_placement(found) == ("attention", "wide", "attention", "wide", "attention")


def test_a_rack_without_a_choice_has_no_slots():
    rack = space({"mixer": ATTENTION, "mlp": MLP})
    assert rack.slots() == ()
    assert rack.place("") == rack
    assert rack.place(()) == rack


@pytest.mark.parametrize("names", ["gdn attention window", "window gdn attention", "attention gdn window"])
def test_choices_keep_their_declared_order(names):
    """The first of sorted names is no one's choice."""
    names = names.split()
    declared = space({"mixer": stochastic({name: MIXERS[name] for name in names}), "mlp": MLP})
    assert declared.slots()[0].names == tuple(names)
    again = RackSpec(**json.loads(json.dumps(declared.to_dict())))
    assert again == declared
    assert again.slots()[0].names == tuple(names)
    assert list(declared.to_dict()["stacks"][0]["blocks"][0]["mixer"]["mixers"]) == names
    (choice,) = [module for module in declared.build().modules() if type(module).__name__ == "Stochastic"]
    assert (choice.names, tuple(choice.mixers), choice.active) == (tuple(names), tuple(names), "attention")


@pytest.mark.parametrize("form", ["blocks", "block", "layers"])
def test_another_order_is_another_space(form):
    """Samplers draw by place in the order, and weights are drawn in it: such spaces must not pass for one another."""

    def ordered(names):
        mixer = stochastic({name: MIXERS[name] for name in names})
        stack = {
            "blocks": {"blocks": [{"mixer": mixer}]},
            "block": {"n_blocks": 2, "block": {"mixer": mixer}},
            "layers": {"n_blocks": 2, "block": {}, "layers": {"-1": {"mixer": mixer}}},
        }[form]
        return space(stacks=[stack])

    first, second, same = (ordered(names) for names in (["gdn", "attention"], ["attention", "gdn"], ["gdn", "attention"]))
    assert first == same
    assert first.fingerprint() == same.fingerprint() == RackSpec(**first.to_dict()).fingerprint()
    assert first != second
    assert first.fingerprint() != second.fingerprint()


def test_a_single_layer_may_change_or_add_a_choice():
    stack = {
        "n_blocks": 3,
        "block": {"mixer": stochastic()},
        "layers": {
            "0": {"mixer": {"main": "gdn"}},
            "2": {"mixer": {"mixers": {"gdn": {"d_conv": 0}, "linear": "linear_attention"}}},
        },
    }
    spec = space(stacks=[stack])
    assert [slot.main for slot in spec.slots()] == ["gdn", "attention", "attention"]
    assert [slot.names[3:] for slot in spec.slots()] == [(), (), ("linear",)]
    assert spec.place("gdn*3").stacks[0].expanded()[2].mixer.d_conv == 0
    assert spec.place("gdn*3").stacks[0].expanded()[1].mixer.d_conv == 4


@pytest.mark.parametrize(("text", "mlp"), [("attention, wide", {"kind": "swiglu", "d_ff": 16}), ("gdn, none", None)])
def test_a_placement_gives_the_rack_that_one_would_write(text, mlp):
    block = {"norm": "layernorm", "mixer_post_norm": "rmsnorm", "output_scale": 0.5, "dropout": 0.1}
    keys = {"tie_embeddings": True, "init_std": 0.1, "max_length": 16, "norm": "layernorm"}
    searchable = space({"mixer": stochastic(), "mlp": MLPS, **block}, {"mixer": GDN, "mlp": MLP}, **keys)
    mixer = {"gdn": GDN, "attention": ATTENTION}[text.split(",")[0]]
    written = space({"mixer": mixer, "mlp": mlp, **block}, {"mixer": GDN, "mlp": MLP}, **keys)
    assert searchable.place(text) == written
    assert searchable.place(text).fingerprint() == written.fingerprint()
    assert searchable.place(text).slots() == ()


def test_stacks_without_a_choice_stay_as_they_are_written():
    fixed = {"n_blocks": 3, "block": {"mixer": ATTENTION}}
    spec = space(stacks=[fixed, {"n_blocks": 2, "block": {"mixer": stochastic()}}])
    placed = spec.place("gdn*2")
    assert placed.stacks[0] == spec.stacks[0]
    assert placed.stacks[0].n_blocks == 3


def test_a_layer_may_go_without_a_mixer():
    spec = space(*2 * [{"mixer": stochastic(MIXERS | {"skip": None}), "mlp": MLP}])
    supernet, tokens = Supernet(spec), torch.arange(6).view(1, 6)
    supernet.activate("skip, gdn")
    rack = supernet.extract("skip, gdn")
    assert rack.blocks()[0].mixer is None
    assert rack.blocks()[0].mixer_norm is None
    assert torch.equal(supernet.rack(tokens), rack(tokens))
    assert spec.place("all:skip").to_dict()["stacks"][0]["blocks"][0]["mixer"] is None
    assert cost(spec.place("all:skip"), 64).state == 0
    out, _ = rack.step(tokens[:, 0], supernet.rack.initial_state(1))
    torch.testing.assert_close(out, rack(tokens)[:, 0], rtol=1e-4, atol=1e-5)


def test_a_placement_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"layer 0 has no 'gnd'; did you mean 'gdn'\?"):
        space({"mixer": stochastic()}).place(["gnd"])


@pytest.mark.parametrize(
    ("block", "where", "text"),
    [
        ({"mixer": stochastic(main="atention")}, "mixer", "main = 'atention' is none of the mixers: window, attention, gdn"),
        ({"mixer": stochastic({}, "x")}, "mixer", "main = 'x' is none of the mixers: none"),
        ({"mixer": {"kind": "stochastic", "main": "attention"}}, "mixer.mixers", "required, but not given"),
        ({"mixer": stochastic(MIXERS | {"a, b": GDN})}, "mixer", "'a, b' must be letters, digits, - and _"),
        ({"mlp": stochastic({"half": MLP}, "half")}, "mlp", "'half' is a word of torch's own"),
        ({"mixer": stochastic(MIXERS | {"more": stochastic()})}, "mixer", "'more' is stochastic itself"),
        ({"mixer": stochastic(MIXERS | {"gdn": {**GDN, "n_heads": 3}})}, "mixer", "mixers.gdn: n_heads = 3 must"),
        ({"mixer": stochastic(MIXERS | {"gdn": {"kind": "gated_delta"}})}, "mixer.mixers.gdn", "did you mean 'gated_delta_net'?"),
        ({"mixer": stochastic(MIXERS | {"gdn": {**GDN, "heads": 2}})}, "mixer.mixers.gdn.heads", "did you mean 'n_heads'?"),
        ({"mixer": stochastic(MIXERS | {"hyena": "hyena"})}, "mixer", "mixers.hyena: hyena needs the rack's max_length"),
        ({"mlp": stochastic({"attention": ATTENTION}, "attention")}, "mlp.mixers.attention", "unknown channel mixer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_choices_that_cannot_be(block, where, text):
    line = problem(block)
    assert line.startswith(f"space: stacks[0].blocks[0].{where}: "), line
    assert text in line


def test_a_shared_block_has_no_choice():
    assert "block 0 shares 'x', but has a choice" in problem({"mixer": stochastic(), "share": "x"})


def test_layers_may_have_a_choice_of_either_half():
    spec = validate(RackSpec, {**SIZES, "layers": [stochastic(), MLPS, "attention"]}, "space")
    assert [(slot.layer, slot.sublayer) for slot in spec.slots()] == [(0, "mixer"), (0, "mlp")]
    with pytest.raises(ConfigError, match=r"layers\[0\].mixers.gdn: unknown mixer 'gdn'"):
        validate(RackSpec, {**SIZES, "layers": [stochastic({"gdn": "gdn"}, "gdn")]}, "space")
