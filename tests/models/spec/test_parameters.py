"""Learning rate scales: along the path, by glob, of every part, and what zero freezes."""

import pytest
import torch

from configs import ConfigError
from configs.load import validate
from models import RackSpec, Supernet
from models.spec.parameters import learning_rate_scales

SIZES = {"vocab_size": 8, "d_model": 16}
ATTENTION = {"kind": "attention", "n_heads": 2}
GDN = {"kind": "gated_delta_net", "n_heads": 2}
MLP = {"kind": "mlp", "d_ff": 8}
TOKENS = torch.arange(24).view(2, 12) % 7


def rack(*blocks, stack=(), **keys):
    return validate(RackSpec, {**SIZES, "stacks": [{"blocks": list(blocks), **dict(stack)}], **keys}, "rack")


def problem(*blocks, **keys):
    with pytest.raises(ConfigError) as caught:
        rack(*blocks, **keys)
    return str(caught.value)


def scales(spec):
    """By name, without what is 1, and without the place of the only block."""
    found = learning_rate_scales(spec.build())
    return {name.removeprefix("stacks.0.blocks.0."): scale for name, scale in found.items() if scale != 1}


def of(part, scale, **more):
    return {**({"kind": part} if isinstance(part, str) else part), "lr_scale": scale, **more}


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("mixer", ATTENTION, {f"mixer.{linear}.weight" for linear in ("query", "key", "value", "output")}),
        ("mlp", MLP, {"mlp.up.weight", "mlp.down.weight"}),
        ("mixer_norm", "rmsnorm", {"mixer_norm.weight"}),
        ("mlp_norm", "layernorm", {"mlp_norm.weight", "mlp_norm.bias"}),
        ("mixer_post_norm", "rmsnorm", {"mixer_post_norm.weight"}),
        ("mlp_post_norm", "rmsnorm", {"mlp_post_norm.weight"}),
    ],
    ids=["mixer", "mlp", "mixer norm", "mlp norm", "mixer post-norm", "mlp post-norm"],
)
def test_every_part_of_a_block_has_a_scale(name, part, expected):
    block = {"mixer": ATTENTION, "mlp": MLP, name: of(part, 0.5)}
    assert scales(rack(block)) == dict.fromkeys(expected, 0.5)


def test_a_head_has_a_scale_and_its_norms_have_that_of_the_racks_norm():
    assert scales(rack({}, head=of("language_model", 0.5))) == {"head.norm.weight": 0.5, "head.output.weight": 0.5}
    assert scales(rack({"mlp": MLP, "norm": "rmsnorm"}, norm=of("rmsnorm", 0.25), head=of("language_model", 0.5))) == {
        "head.norm.weight": 0.125,
        "head.output.weight": 0.5,
    }
    handed_down = scales(rack({"mlp": MLP}, norm=of("layernorm", 0.25, bias=False), head="autoencoder", max_length=4))
    assert handed_down == dict.fromkeys(
        ("mlp_norm.weight", "head.decoder.0.weight", "head.decoder.3.weight", "head.norm.weight"), 0.25
    )


def test_scales_multiply_along_the_path():
    spec = rack(
        {"mixer": of(ATTENTION, 0.5), "mlp": MLP, "mlp_norm": of("rmsnorm", 0), "lr_scale": 3},
        {"mlp": MLP},
        stack={"lr_scale": 5},
        lr_scale=7,
    )
    found = learning_rate_scales(spec.build())
    expected = {
        "embedding.weight": 7,
        "stacks.0.blocks.0.mixer.query.weight": 7 * 5 * 3 * 0.5,
        "stacks.0.blocks.0.mixer_norm.weight": 7 * 5 * 3,
        "stacks.0.blocks.0.mlp_norm.weight": 0,
        "stacks.0.blocks.0.mlp.up.weight": 7 * 5 * 3,
        "stacks.0.blocks.1.mlp.up.weight": 7 * 5,
        "head.norm.weight": 7,
        "head.output.weight": 7,
    }
    assert {name: found[name] for name in expected} == expected


def test_a_layer_override_may_set_a_scale():
    stack = {"n_blocks": 3, "block": {"mlp": of(MLP, 0.5)}, "layers": {"1": {"mlp": {"lr_scale": 0}}, "2": {"lr_scale": 0.5}}}
    found = learning_rate_scales(rack(stacks=[stack]).build())
    assert [found[f"stacks.0.blocks.{index}.mlp.up.weight"] for index in range(3)] == [0.5, 0, 0.25]


def test_globs_multiply_on_top():
    spec = rack(
        {"mixer": of(ATTENTION, 0.5), "mlp": MLP},
        parameters={"*.mixer.*": {"lr_scale": 0.5}, "*.query.weight": {"lr_scale": 3}, "embedding.*": {"lr_scale": 0}},
    )
    assert scales(spec) == {
        "embedding.weight": 0,
        "mixer.query.weight": 0.75,
        **{f"mixer.{linear}.weight": 0.25 for linear in ("key", "value", "output")},
    }


def test_a_tied_weight_is_the_embeddings():
    spec = rack({"mlp": MLP}, tie_embeddings=True, head=of("language_model", 0))
    assert scales(spec) == {"head.norm.weight": 0}
    assert scales(rack({"mlp": MLP}, tie_embeddings=True, parameters={"embedding.weight": {"lr_scale": 0}})) == {
        "embedding.weight": 0
    }


def test_what_is_frozen_has_no_gradient_and_no_other_parameter_differs():
    """The common case: channel mixers and norms frozen while the mixers learn."""
    blocks = [{"mixer": ATTENTION, "mlp": of(MLP, 0), "mixer_norm": of("rmsnorm", 0), "mlp_norm": of("rmsnorm", 0)}]
    model, free = rack(*blocks).build(seed=1), rack({"mixer": ATTENTION, "mlp": MLP}).build(seed=1)
    for each in (model, free):
        each(TOKENS).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), free.parameters(), strict=True):
        is_frozen = ".mlp." in name or "_norm." in name
        assert parameter.requires_grad == (parameter.grad is not None) == (not is_frozen), name
        assert is_frozen or torch.equal(parameter.grad, other.grad), name
        assert torch.equal(parameter, other)


def test_shared_blocks_have_the_scale_of_their_block_once():
    shared = {"mlp": of(MLP, 0.5), "share": "x"}
    stacks = [{"blocks": [shared, shared], "lr_scale": 0.5}, {"blocks": [shared], "lr_scale": 0.5}]
    assert learning_rate_scales(rack(stacks=stacks).build())["stacks.0.blocks.0.mlp.up.weight"] == 0.25
    assert "block 2 shares 'x' with an earlier block, but their settings differ" in problem(
        stacks=[*stacks[:1], {"blocks": [shared]}]
    )


def test_a_dump_writes_every_field_out():
    unset, said = rack({"mlp": of(MLP, 1)}), rack({"mlp": of(MLP, 0.5)}, lr_scale=2)
    assert unset == rack({"mlp": MLP})
    nothing = {"lr_scale": 1.0, "weight_decay": None, "init": None, "lora": None, "parameters": {}}
    assert unset.to_dict()["stacks"][0]["blocks"][0]["mlp"] == {"kind": "mlp", "d_ff": 8, **nothing}
    assert said.to_dict()["lr_scale"] == 2
    assert RackSpec(**said.to_dict()) == said
    assert len({unset.fingerprint(), said.fingerprint(), rack({"mlp": MLP}, lr_scale=2).fingerprint()}) == 3


@pytest.mark.parametrize(
    ("keys", "where", "text"),
    [
        ({"lr_scale": -1}, "lr_scale", "greater than or equal to 0"),
        ({"head": of("language_model", -1)}, "head.lr_scale", "greater than or equal to 0"),
        ({"head": {"kind": "language_model", "lr_scales": 1}}, "head.lr_scales", "did you mean 'lr_scale'?"),
        ({"parameters": {"*": {"lr_rate": 1}}}, 'parameters["*"].lr_rate', "unknown key 'lr_rate'"),
        (
            {"parameters": {"*.weight": {"lr_scale": 0}, "head.outptu.weight": {"lr_scale": 0}}},
            'parameters["head.outptu.weight"]',
            "'head.outptu.weight' matches no parameter; the nearest is 'head.output.weight'",
        ),
        ({"parameters": {"*.bias": {"lr_scale": 0}}}, 'parameters["*.bias"]', "matches no parameter"),
        (
            {"tie_embeddings": True, "parameters": {"head.output.weight": {"lr_scale": 0}}},
            'parameters["head.output.weight"]',
            "matches no parameter",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_on_loading(keys, where, text):
    line = problem({"mlp": MLP}, **keys)
    assert line.startswith(f"rack: {where}: ")
    assert text in line


MIXED = {"kind": "stochastic", "main": "attention", "lr_scale": 0.5, "mixers": {"gdn": of(GDN, 3), "attention": ATTENTION}}
MLPS = {"kind": "stochastic", "main": "wide", "mixers": {"none": None, "wide": {"kind": "swiglu"}, "narrow": of(MLP, 0)}}
GLOBS = {
    "*.mixers.*": {"lr_scale": 2},  # every choice, and none of the names that a placed rack has
    "*.0.mixer.mixers.gdn.*": {"lr_scale": 0.25},
    "*.1.mixer.mixers.attention.q*": {"lr_scale": 0},
    "*_norm.weight": {"lr_scale": 0.125},
    "stacks.0.blocks.1.mlp_norm.weight": {"lr_scale": 0.5},
}
SPACE = {"stack": {"lr_scale": 11}, "lr_scale": 13, "parameters": GLOBS}


def in_the_supernet(supernet, placement):
    """The scales of a subnet's parameters, by the names that they have in its rack."""
    supernet.activate(placement)
    found = learning_rate_scales(supernet.rack)
    for name in list(found):
        path, inside, rest = name.partition(".mixers.")
        if inside:
            scale = found.pop(name)
            choice, _, rest = rest.partition(".")
            if supernet.rack.get_submodule(path).active == choice:
                found[f"{path}.{rest}"] = scale
    return found


@pytest.mark.parametrize("placement", ["gdn, wide, attention, narrow", "attention, none, gdn, none", "gdn, none, gdn, wide"])
def test_a_placed_and_a_thinned_rack_keep_their_scales(placement):
    block = {"mixer": MIXED, "mlp": MLPS, "lr_scale": 7}
    supernet = Supernet(rack(block, block, **SPACE))
    expected = in_the_supernet(supernet, placement)
    placed = supernet.space.place(placement)
    assert RackSpec(**placed.to_dict()) == placed
    for model in (placed.build(), supernet.extract(placement)):
        found = learning_rate_scales(model)
        assert found == {name: expected[name] for name in found}
        assert set(expected) - set(found) <= {"stacks.0.blocks.0.mlp_norm.weight", "stacks.0.blocks.1.mlp_norm.weight"}
        assert all(parameter.requires_grad == (found[name] != 0) for name, parameter in model.named_parameters())
    thin = supernet.thin([placement])
    assert learning_rate_scales(thin.extract(placement)) == found
    first = found["stacks.0.blocks.0.mixer.query.weight"]
    assert first == 13 * 11 * 7 * 0.5 * 2 * (3 * 0.25 if placement.startswith("gdn") else 1)


def test_globs_that_come_to_the_same_stay_as_they_are():
    block = {"mixer": MIXED, "mlp": MLP}
    spec = rack(block, block, parameters={"*.mlp.*": {"lr_scale": 0}, "*.gdn.*": {"lr_scale": 0}})
    assert list(spec.place("attention*2").parameters) == ["*.mlp.*"]
    assert list(spec.parameters) == ["*.mlp.*", "*.gdn.*"]
