"""What a spec says of parameters: initial values, biases, weight decay, adapters; by components and by globs, at every level."""

import math

import pytest
import torch

from configs import ConfigError
from configs.load import validate
from models import MIXERS, RackSpec, Supernet
from models.assembly.cost import cost
from models.linears.adapters import AdaptedLinear, is_adapter
from models.spec.parameters import INITS
from tests.models.cases import MIXER_CASES

SIZES = {"vocab_size": 8, "d_model": 32, "max_length": 80}
ATTENTION = {"kind": "attention", "n_heads": 2}
MLP = {"kind": "mlp", "d_ff": 8}
TOKENS = torch.arange(24).view(2, 12) % 7


def rack(*blocks, stack=(), **keys):
    return validate(RackSpec, {**SIZES, "stacks": [{"blocks": list(blocks), **dict(stack)}], **keys}, "rack")


def problem(*blocks, **keys):
    with pytest.raises(ConfigError) as caught:
        rack(*blocks, **keys)
    return str(caught.value)


def parameters(spec, seed=0):
    return {name.removeprefix("stacks.0.blocks.0."): value for name, value in spec.build(seed).named_parameters()}


def value_of(spec, name):
    """The one number that all of a parameter's are."""
    (value,) = parameters(spec)[name].unique().tolist()
    return value


WITH_LINEARS = {name: case for name, case in MIXER_CASES.items() if name != "identity"}
each_mixer = pytest.mark.parametrize("options", WITH_LINEARS.values(), ids=WITH_LINEARS)
FILL = {"kind": "fill", "value": 0.0}


def fill(value):
    return {"init": {**FILL, "value": value}}


def test_what_is_said_nearest_to_a_parameter_holds():
    mixer = {**ATTENTION, **fill(4), "parameters": {"k*": fill(6), "key.weight": fill(7)}}
    block = {"mixer": mixer, "mlp": MLP, **fill(3), "parameters": {"mlp.up": fill(5)}}
    spec = rack(block, stack=fill(2), **fill(1), parameters={"*.value.weight": fill(8), "*.key.weight": fill(9)})
    found = {name: value_of(spec, name) for name in ("head.output.weight", "mixer.query.weight", "mlp.down.weight")}
    assert found == {"head.output.weight": 1, "mixer.query.weight": 4, "mlp.down.weight": 3}
    assert value_of(spec, "mlp.up.weight") == 5, "a glob of the block"
    assert value_of(spec, "mixer.key.weight") == 7, "the last glob that matches, of the innermost component that has one"
    assert value_of(spec, "mixer.value.weight") == 8, "a glob says more than the components around"
    assert len(parameters(spec)["embedding.weight"].unique()) > 8, "embeddings start by their own component"
    assert value_of(spec, "mixer_norm.weight") == 1.0, "what is no linear's weight starts as its layer starts it"


def test_what_belongs_to_a_formula_starts_anew_only_by_name():
    spec = rack({"mixer": {"kind": "mamba", **fill(0.5)}})
    assert torch.nn.functional.softplus(parameters(spec)["mixer.time_step.bias"]).max() < 0.11
    named = rack({"mixer": {"kind": "mamba", "parameters": {"time_step.bias": fill(0.5), "D": fill(2)}}})
    assert value_of(named, "mixer.time_step.bias") == 0.5
    assert value_of(named, "mixer.D") == 2


def test_an_embedding_has_a_start_of_its_own():
    assert value_of(rack({}, embedding={"kind": "token", **fill(3)}), "embedding.weight") == 3
    assert value_of(rack({}, parameters={"embedding.weight": fill(4)}), "embedding.weight") == 4


@pytest.mark.parametrize(
    ("init", "spread", "bound"),
    [
        ({"kind": "normal", "std": 0.5}, 0.5, 3),
        ({"kind": "truncated_normal", "std": 0.5, "cut": 1.0}, 0.5 * 0.54, 0.5),
        ({"kind": "uniform", "low": -1, "high": 1}, 1 / math.sqrt(3), 1),
        ({"kind": "scaled_by_depth", "std": 0.8}, 0.8 / math.sqrt(4), 2),
        ({"kind": "zeros"}, 0, 0),
        ({"kind": "ones"}, 0, 1),
    ],
    ids=str,
)
def test_distributions(init, spread, bound):
    spec = rack({"mlp": {"kind": "mlp", "d_ff": 512, "init": init}}, {"mlp": MLP})
    weight = parameters(spec)["mlp.up.weight"]
    assert weight.std().item() == pytest.approx(spread, rel=0.05)
    assert weight.abs().max() <= bound
    assert torch.equal(weight, parameters(spec)["mlp.up.weight"]), "the same seed, the same weights"
    assert spread == 0 or not torch.equal(weight, parameters(spec, seed=1)["mlp.up.weight"])


def test_the_starts_of_state_space_models():
    globs = {"time_step.bias": {"init": {"kind": "time_steps", "shortest": 0.5, "longest": 0.6}}, "A_log": fill(9)}
    steps = torch.nn.functional.softplus(
        parameters(rack({"mixer": {"kind": "mamba", "parameters": globs}}))["mixer.time_step.bias"]
    )
    assert steps.min() >= 0.499
    assert steps.max() <= 0.601
    globs = {"A_log": {"init": {"kind": "log_range"}}}
    found = parameters(rack({"mixer": {"kind": "mamba", "d_state": 3, "parameters": globs}}))["mixer.A_log"]
    torch.testing.assert_close(found.exp(), torch.arange(1.0, 4)[:, None].expand_as(found))


def test_every_init_is_covered():
    known = {"normal", "truncated_normal", "uniform", "scaled_by_depth", "zeros", "ones", "fill", "time_steps", "log_range"}
    assert set(INITS) == known


@each_mixer
def test_bias_is_short_for_what_every_linear_of_a_mixer_has(options):
    plain, biased = (rack({"mixer": {**options, **keys}}).build() for keys in ({}, {"bias": True}))
    linears = {name for name, module in plain.stacks.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linears
    new = {f"stacks.{name}.bias" for name in linears} - set(plain.state_dict())
    assert set(biased.state_dict()) - set(plain.state_dict()) == new
    assert all(biased.get_parameter(name).eq(0).all() for name in new)
    torch.testing.assert_close(biased(TOKENS), plain(TOKENS))
    loss = biased(TOKENS).square().sum()
    loss.backward()
    assert all(biased.get_parameter(name).grad is not None for name in new)


def test_bias_is_gone_from_a_saved_spec_and_single_linears_may_differ():
    spec = rack({"mixer": {**ATTENTION, "bias": True, "parameters": {"value": {"bias": False}}}})
    saved = spec.to_dict()["stacks"][0]["blocks"][0]["mixer"]
    assert "bias" not in saved
    assert {glob: said["bias"] for glob, said in saved["parameters"].items()} == {"*": True, "value": False}
    assert RackSpec(**spec.to_dict()) == spec
    names = {name for name in parameters(spec) if name.startswith("mixer.") and name.endswith(".bias")}
    assert names == {"mixer.query.bias", "mixer.key.bias", "mixer.output.bias"}


def test_a_bias_of_a_formula_stays():
    assert "mixer.time_step.bias" in parameters(rack({"mixer": {"kind": "mamba", "bias": False}}))
    text = problem({"mixer": {"kind": "mamba", "parameters": {"time_step": {"bias": False}}}})
    assert text == (
        "rack: stacks[0].blocks[0].mixer.parameters.time_step: the bias of 'time_step' is part of the mixer's formula: "
        "it cannot be left out"
    )


@pytest.mark.parametrize(
    ("block", "where", "text"),
    [
        ({"mixer": {**ATTENTION, "parameters": {"qeury": fill(1)}}}, "mixer.parameters.qeury", "nearest is 'query'"),
        ({"mixer": {**ATTENTION, "parameters": {"gate": fill(1)}}}, "mixer.parameters.gate", "matches no parameter"),
        (
            {"mixer": {"kind": "mamba", "parameters": {"gate": fill(1)}}},
            "mixer.parameters.gate",
            "part of the fused linear 'input'",
        ),
        ({"mixer": {"kind": "mamba", "parameters": {"D": {"bias": True}}}}, "mixer.parameters.D", "only linears have bias"),
        ({"mixer": {"kind": "mamba", "parameters": {"A_log": {"lora": {}}}}}, "mixer.parameters.A_log", "only linears have lora"),
        ({"mlp": {**MLP, "init": {"kind": "normal", "std": -1}}}, "mlp.init", "std = -1.0 must be above 0"),
        ({"mlp": {**MLP, "init": "gaussian"}}, "mlp.init", "unknown init 'gaussian'"),
        ({"mlp": {**MLP, "lora": {"rank": 0}}}, "mlp.lora.rank", "greater than 0"),
        ({"mlp": MLP, "weight_decay": -1}, "weight_decay", "greater than or equal to 0"),
        ({"mlp": MLP, "parameters": {"mlp.*": {"lr": 1}}}, 'parameters["mlp.*"].lr', "unknown key 'lr'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_at_its_place(block, where, text):
    message = problem(block)
    assert message.startswith(f"rack: stacks[0].blocks[0].{where}: ")
    assert text in message


def test_weight_decay_of_the_nearest():
    spec = rack(
        {"mlp": {**MLP, "weight_decay": 0.2}, "mixer": ATTENTION}, weight_decay=0.3, parameters={"*norm*": {"weight_decay": 0}}
    )
    found = {name: parameter.weight_decay for name, parameter in parameters(spec).items()}
    assert found["mlp.up.weight"] == 0.2
    assert found["mixer.query.weight"] == found["embedding.weight"] == 0.3
    assert found["mixer_norm.weight"] == found["head.norm.weight"] == 0
    assert not hasattr(parameters(rack({"mlp": MLP}))["mlp.up.weight"], "weight_decay")


LORA = {"lora": {"rank": 2, "alpha": 6}}


@each_mixer
def test_adapters_in_every_mixer(options):
    """They change nothing at first; they alone learn; and what they add is a change of the linears' weights."""
    plain, adapted = (rack({"mixer": {**options, **keys}}).build() for keys in ({}, LORA))
    linears = {name for name, module in adapted.stacks.named_modules() if isinstance(module, torch.nn.Linear)}
    assert all(isinstance(adapted.stacks.get_submodule(name), AdaptedLinear) for name in linears)
    assert torch.equal(adapted(TOKENS), plain(TOKENS))
    trained = {name for name, parameter in adapted.stacks.named_parameters() if parameter.requires_grad and ".mixer." in name}
    assert trained == {f"{name}.adapters.lora.{part}" for name in linears for part in ("up", "down")}
    with torch.no_grad():
        for name in linears:
            linear = adapted.stacks.get_submodule(name)
            linear.adapters["lora"].up.normal_(std=0.1)
            plain.stacks.get_submodule(name).weight += linear.adapters["lora"].weight()
    torch.testing.assert_close(adapted(TOKENS), plain(TOKENS), rtol=1e-4, atol=1e-4)
    adapted(TOKENS).square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in adapted.parameters())


def test_every_kind_of_mixer_is_in_the_cases():
    assert {case["kind"] for case in MIXER_CASES.values()} == set(MIXERS)


def test_adapters_by_component_and_glob():
    mixer = {
        **ATTENTION,
        **LORA,
        "parameters": {"key": {"lora": {"apply": False}}, "value": {"lora": {"rank": 3, "rslora": True}}},
    }
    model = rack({"mixer": mixer, "mlp": MLP}).build()
    attention = model.blocks()[0].mixer
    assert attention.query.adapters["lora"].scale == 3
    assert attention.value.adapters["lora"].scale == pytest.approx(math.sqrt(3))
    assert attention.value.adapters["lora"].down.shape == (3, 32)
    assert not isinstance(attention.key, AdaptedLinear)
    assert not attention.key.weight.requires_grad, "opted out of adapters, not of being frozen"
    assert model.blocks()[0].mlp.up.weight.requires_grad


def test_others_than_adapted_linears_may_go_on_learning():
    spec = rack({"mixer": {"kind": "mamba", "lora": {"freeze_others": False}}})
    trained = {name for name, parameter in parameters(spec).items() if parameter.requires_grad and not is_adapter(name)}
    assert {"mixer.A_log", "mixer.D", "mixer_norm.weight"} <= trained
    assert not {"mixer.input.weight", "mixer.time_step.weight", "mixer.time_step.bias"} & trained


def test_adapters_drop_out_in_training_alone():
    model = rack({"mlp": {**MLP, "lora": {"rank": 4, "dropout": 0.5}}}).build()
    with torch.no_grad():
        model.blocks()[0].mlp.up.adapters["lora"].up.normal_()
    assert not torch.equal(model(TOKENS), model(TOKENS))
    model.eval()
    assert torch.equal(model(TOKENS), model(TOKENS))


def test_adapters_are_counted():
    plain, adapted = rack({"mixer": ATTENTION, "mlp": MLP}), rack({"mixer": ATTENTION, "mlp": MLP}, **LORA)
    extra = sum(parameter.numel() for name, parameter in adapted.build().named_parameters() if is_adapter(name))
    assert cost(adapted, 80).n_parameters - cost(plain, 80).n_parameters == extra
    assert cost(adapted, 80).flops - cost(plain, 80).flops == 2 * extra


SEARCHED = {
    "kind": "stochastic",
    "main": "attention",
    "parameters": {"*.query": fill(2), "mixers.gdn.key": {**fill(3), "lr_scale": 0.5}},
    "mixers": {
        "attention": {**ATTENTION, **fill(1)},
        "gdn": {"kind": "gated_delta_net", "parameters": {"key": {"lr_scale": 0.5}}},
    },
}


@pytest.mark.parametrize("placement", ["attention, gdn", "gdn, attention"])
def test_a_placed_rack_keeps_what_is_said_of_its_parts(placement):
    block = {
        "mixer": SEARCHED,
        "mlp": MLP,
        "parameters": {"mixer.mixers.gdn.value": {"weight_decay": 0.1}, "mlp": {"bias": True}},
    }
    globs = {"blocks.1.mixer.mixers.attention.output": {"lora": {"rank": 2}}}
    space = rack(block, block, stack={"parameters": globs})
    supernet, placed = Supernet(space), space.place(placement)
    assert RackSpec(**placed.to_dict()) == placed
    extracted = supernet.extract(placement)
    supernet.activate(placement)
    chosen = supernet.state_dict()
    for name, parameter in placed.build().named_parameters():
        in_space = name
        for index, choice in enumerate(placement.split(", ")):
            in_space = in_space.replace(f"blocks.{index}.mixer.", f"blocks.{index}.mixer.mixers.{choice}.")
        own = supernet.rack.get_parameter(in_space)
        assert vars(parameter) == vars(own) == vars(extracted.get_parameter(name)), name
        assert parameter.requires_grad == own.requires_grad, name
        assert torch.equal(extracted.get_parameter(name), chosen[f"rack.{in_space}"])
    gdn = 0 if placement.startswith("gdn") else 1
    keys = dict(placed.build().named_parameters())
    assert keys[f"stacks.0.blocks.{gdn}.mixer.key.weight"].lr_scale == 0.25
    assert keys[f"stacks.0.blocks.{gdn}.mixer.value.weight"].weight_decay == 0.1
    assert keys[f"stacks.0.blocks.{gdn}.mixer.key.weight"].unique().tolist() == [3]
    assert keys["stacks.0.blocks.0.mixer.query.weight"].unique().tolist() == [2]
    thin = supernet.thin([placement])
    assert torch.equal(thin.extract(placement)(TOKENS), extracted(TOKENS))


def same_spec(first, second):
    """Equal, of one fingerprint, and of the same parameters with the same marks."""
    marks = [
        {name: (vars(each), each.requires_grad) for name, each in spec.build().named_parameters()} for spec in (first, second)
    ]
    return first == second and first.fingerprint() == second.fingerprint() and marks[0] == marks[1]


def test_the_order_of_globs_is_part_of_what_a_spec_is():
    globs = {"*": {"bias": False, **fill(1)}, "query": {"bias": True, **fill(2)}}
    first = rack({"mixer": {**ATTENTION, "parameters": globs}})
    second = rack({"mixer": {**ATTENTION, "parameters": dict(reversed(globs.items()))}})
    assert first != second
    assert first.fingerprint() != second.fingerprint()
    assert (value_of(first, "mixer.query.weight"), value_of(second, "mixer.query.weight")) == (2, 1)
    assert [cost(spec, 8).n_parameters for spec in (first, second)] == [
        sum(parameter.numel() for parameter in spec.build().parameters()) for spec in (first, second)
    ]
    assert same_spec(RackSpec(**first.to_dict()), first)


def test_blocks_that_share_say_the_same_in_the_same_order():
    globs = {"*": {"lr_scale": 2}, "*.up": fill(2)}
    stacks = [{"blocks": [{"mlp": MLP, "share": "x"}], "parameters": each} for each in (globs, dict(reversed(globs.items())))]
    assert problem(stacks=stacks).startswith("rack: stacks[1].blocks[0].share: block 1 shares 'x'")


SILENCED = [
    ({"lr_scale": 0.5}, {"lr_scale": 1.0}),
    ({"weight_decay": 0.5}, {"weight_decay": None}),
    ({"lora": {"rank": 2}}, {"lora": None}),
    ({"mlp": {**MLP, "init": FILL}}, {"mlp": {"init": None}}),
    ({"mlp": {**MLP, "lr_scale": 0.5}}, {"mlp": {"lr_scale": 1.0}}),
    ({"mlp": {**MLP, "parameters": {"up": {"bias": True}}}}, {"mlp": {"parameters": {"up": {"bias": None}}}}),
]


@pytest.mark.parametrize(("said", "unsaid"), SILENCED, ids=str)
def test_an_override_that_unsays_something_is_saved(said, unsaid):
    block = {"mixer": ATTENTION, "mlp": MLP, **said}
    spec = rack(stacks=[{"n_blocks": 2, "block": block, "layers": {"0": unsaid}}])
    assert spec.stacks[0].expanded()[0] != spec.stacks[0].expanded()[1]
    assert same_spec(RackSpec(**spec.to_dict()), spec)
    assert spec.stacks[0].expanded()[0] == rack({"mixer": ATTENTION, "mlp": MLP}).stacks[0].expanded()[0].model_copy(
        update={"mlp": spec.stacks[0].expanded()[0].mlp}
    )


CHOICES = {"a": ATTENTION, "b": {"kind": "gated_delta_net"}}
PLACED = {
    "adapters by name": {"parameters": {"mixers.a.query": {"lora": {"rank": 2}}}},
    "biases by name": {"parameters": {"mixers.a.query": {"bias": True}, "*.query.bias": {"lr_scale": 0.25}}},
    "adapters' own": {"lora": {"rank": 2}, "parameters": {"*.adapters.lora.up": {"lr_scale": 4}}},
    "the last wins": {"parameters": {"mixers.a.query": fill(1), "*": fill(2), "mixers.a.q*": fill(3)}},
    "modules": {"parameters": {"mixers.a": {"lr_scale": 0.5}, "mixers.b": {"lr_scale": 0.25}}},
    "both say all": {"parameters": {"*": {**fill(1), "weight_decay": 0.1}, "mixers.a.key": {"weight_decay": 0.2}}},
}


@pytest.mark.parametrize("level", ["part", "block", "stack", "rack"])
@pytest.mark.parametrize("said", PLACED.values(), ids=PLACED)
def test_what_is_placed_is_what_the_supernet_holds(said, level):
    """Whatever is said, and at whichever level, the placed rack is built with it, or has it from the supernet."""
    path = {"part": "", "block": "mixer.", "stack": "blocks.0.mixer.", "rack": "stacks.0.blocks.0.mixer."}[level]
    said = {
        **said,
        "parameters": {glob if glob.startswith("*") else f"{path}{glob}": each for glob, each in said["parameters"].items()},
    }
    inner = {**ATTENTION, "parameters": {"*": {"lr_scale": 3}}} if level == "part" else ATTENTION
    part = {"kind": "stochastic", "main": "a", "mixers": {**CHOICES, "a": inner}, **(said if level == "part" else {})}
    block = {"mixer": part, "mlp": MLP, **(said if level == "block" else {})}
    stack, top = (said if level == name else {} for name in ("stack", "rack"))
    supernet = Supernet(rack(block, stack=stack, **top))
    for model, prefix in ((supernet.extract(["a"]), ""), (supernet.thin([["a"]]).rack, "mixers.a.")):
        marks = {name: (vars(each), each.requires_grad) for name, each in model.named_parameters()}
        for name, mark in marks.items():
            place = "stacks.0.blocks.0.mixer."
            old = name.replace(f"{place}{prefix}", f"{place}mixers.a.") if name.startswith(f"{place}{prefix}") else name
            own = supernet.rack.get_parameter(old)
            assert mark == (vars(own), own.requires_grad), name
            assert torch.equal(model.get_parameter(name), own), name
    placed = supernet.space.place(["a"])
    assert same_spec(RackSpec(**placed.to_dict()), placed)
    built = placed.build()
    for name, parameter in built.named_parameters():
        if "init" in str(said) and name.endswith(("query.weight", "key.weight")):
            assert torch.equal(parameter, supernet.extract(["a"]).get_parameter(name)), name


def test_bias_is_not_lost_beside_globs_or_in_an_override():
    beside = rack({"mixer": {**ATTENTION, "bias": True, "parameters": {"*": {"lr_scale": 0.5}}}})
    assert parameters(beside)["mixer.query.bias"].lr_scale == 0.5
    stack = {"n_blocks": 2, "block": {"mixer": {**ATTENTION, "bias": False}}, "layers": {"0": {"mixer": {"bias": True}}}}
    blocks = rack(stacks=[stack]).build().blocks()
    assert [block.mixer.query.bias is not None for block in blocks] == [True, False]


def test_what_reaches_nothing_is_refused():
    lora = {"lora": {"rank": 2}}
    assert problem({}, embedding={"kind": "token", **lora}).startswith("rack: embedding.lora: says nothing: there are no linears")
    assert "mixer_norm.init: says nothing" in problem({"mixer": ATTENTION, "mixer_norm": {"kind": "rmsnorm", "init": FILL}})
    tied = "the head's weight is the embedding's (tie_embeddings)"
    unadapted = f"{tied}, and has no adapter: what it learnt could not be merged"
    for said, place, text in (
        (lora, "lora", unadapted),
        ({"parameters": {"output": lora}}, "parameters.output", unadapted),
        ({"parameters": {"output": fill(1)}}, "parameters.output", f"{tied}: say it of the embedding"),
    ):
        assert problem({}, tie_embeddings=True, head={"kind": "language_model", **said}) == f"rack: head.{place}: {text}"
        assert rack({}, head={"kind": "language_model", **said}).build()


def test_opting_out_of_no_adapters_freezes_nothing():
    assert all(
        parameter.requires_grad for parameter in parameters(rack({"mixer": {**ATTENTION, "lora": {"apply": False}}})).values()
    )
    others = {**ATTENTION, "lora": {"freeze_others": False}, "parameters": {"query": {"lora": {"apply": False}}}}
    assert parameters(rack({"mixer": others}))["mixer.query.weight"].requires_grad
    itself = {**ATTENTION, **LORA, "parameters": {"query": {"lora": {"apply": False, "freeze_others": False}}}}
    spec = rack({"mixer": itself})
    assert parameters(spec)["mixer.query.weight"].requires_grad
    assert not parameters(spec)["mixer.key.weight"].requires_grad
    assert same_spec(RackSpec(**spec.to_dict()), spec)


@pytest.mark.parametrize(("glob", "meant"), [("*.qury", "query"), ("*qeury*", "query"), ("stacks.0.blocks.0.mixr", "mixer")])
def test_the_nearest_name_of_a_glob_is_by_its_last_word(glob, meant):
    message = problem({"mixer": ATTENTION, "mlp": MLP}, parameters={glob: {"lr_scale": 0}})
    assert meant in message.partition("the nearest is ")[2]


def ranks(spec, adapter="lora"):
    """Of the adapters of that name by linear."""
    named = spec.build().stacks[0].blocks[0].named_modules()
    return {
        name: part.adapters[adapter].rank for name, part in named if isinstance(part, AdaptedLinear) and adapter in part.adapters
    }


def test_adapters_have_targets():
    lora = {"lora": {"rank": 2, "targets": ["*.query", "mlp"]}}
    model = rack({"mixer": ATTENTION, "mlp": MLP, **lora})
    assert set(ranks(model)) == {"mixer.query", "mlp.up", "mlp.down"}
    assert not parameters(model)["mixer.key.weight"].requires_grad, "no target counts as what else is below"
    assert not parameters(model)["mixer_norm.weight"].requires_grad
    free = rack({"mixer": ATTENTION, "mlp": MLP, "lora": {**lora["lora"], "freeze_others": False}})
    assert {name for name, parameter in parameters(free).items() if not parameter.requires_grad} == {
        f"{name}.weight" for name in ranks(free)
    }
    nearer = rack({"mixer": {**ATTENTION, "lora": {"rank": 3, "targets": ["key"]}}, "mlp": MLP}, lora={"rank": 2})
    assert ranks(nearer) == {"mixer.key": 3, "mlp.up": 2, "mlp.down": 2}
    by_glob = rack({"mixer": ATTENTION}, parameters={"*.mixer": {"lora": {"rank": 2, "targets": ["*.key"]}}})
    assert ranks(by_glob) == {"mixer.key": 2}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("lora", {"lora": {"targets": ["*", "*.qury"]}}),
        ("stacks[0].lora", {"stack": {"lora": {"targets": ["*", "*.qury"]}}}),
        ("stacks[0].progressive_lora", {"stack": {"progressive_lora": {"targets": ["*", "*.qury"]}}}),
        ('parameters["*"].lora', {"parameters": {"*": {"lora": {"targets": ["*", "*.qury"]}}}}),
    ],
)
def test_a_target_that_is_no_linear_is_told(place, said):
    line = problem({"mixer": ATTENTION}, **said)
    assert line.startswith(f"rack: {place}.targets[1]: '*.qury' matches no linear below; did you mean 'query'?")
    part = problem({"mixer": {**ATTENTION, "lora": {"targets": ["up"]}}})
    assert part.startswith("rack: stacks[0].blocks[0].mixer.lora.targets[0]: 'up' matches no linear below; ")


def test_a_rank_may_be_fitted_to_each_linear():
    fitted = {"mixer": ATTENTION, "mlp": MLP, "lora": {"rank": 20, "fit": True}}
    assert ranks(rack(fitted)) == {
        "mlp.up": 4,
        "mlp.down": 4,
        **{f"mixer.{name}": 16 for name in ("query", "key", "value", "output")},
    }
    assert ranks(rack({**fitted, "mlp": {**MLP, "d_ff": 1}}))["mlp.up"] == 1
    assert ranks(rack({**fitted, "lora": {"rank": 20}}))["mlp.up"] == 20
    adapters = rack({**fitted, "lora": {"rank": 20, "alpha": 8, "fit": True}}).build().blocks()[0].mlp.up.adapters
    assert adapters["lora"].scale == 2


TRAINS = {"rank": 2}
RESTS = {"rank": 2, "trains": False}
LETS_BE = {"rank": 2, "freeze_others": False}
BESIDE = {"rank": 2, "freeze_others": False, "freeze_base": False}


@pytest.mark.parametrize(
    ("lora", "progressive", "training"),
    [
        (TRAINS, None, {"lora"}),
        (RESTS, None, {"base", "others"}),
        (TRAINS, TRAINS, {"lora", "progressive"}),
        (TRAINS, RESTS, {"lora"}),
        (RESTS, TRAINS, {"progressive"}),
        (RESTS, RESTS, {"base", "others"}),
        (LETS_BE, LETS_BE, {"lora", "progressive", "others"}),
        (LETS_BE, TRAINS, {"lora", "progressive"}),
        (LETS_BE, RESTS, {"lora", "others"}),
        (BESIDE, None, {"lora", "base", "others"}),
        (BESIDE, RESTS, {"lora", "base", "others"}),
        (BESIDE, LETS_BE, {"lora", "progressive", "others"}),
        (None, TRAINS, {"progressive"}),
        (None, RESTS, {"base", "others"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_what_two_adapters_freeze(lora, progressive, training):
    spec = rack(
        {"mixer": ATTENTION, "parameters": {"mixer.query": {"bias": True}}}, stack={"lora": lora, "progressive_lora": progressive}
    )
    model = spec.build()
    names = {"lora"} if lora else set()
    names |= {"progressive"} if progressive else set()
    for name, parameter in model.stacks.named_parameters():
        _, inside, rest = name.partition(".adapters.")
        kind = rest.partition(".")[0] if inside else "others" if "norm" in name else "base"
        assert parameter.requires_grad == (kind in training), name
    assert set(model.blocks()[0].mixer.query.adapters) == names
    assert model.head.output.weight.requires_grad
    frozen = rack({"mixer": ATTENTION}, stack={"lora": lora, "progressive_lora": progressive, "lr_scale": 0}).build()
    assert not any(parameter.requires_grad for parameter in frozen.stacks.parameters())


def test_both_adapters_add_to_the_linear():
    spec = rack({"mixer": ATTENTION}, stack={"lora": {"rank": 2, "alpha": 6}, "progressive_lora": {"rank": 3}})
    linear = spec.build().blocks()[0].mixer.query
    plain = torch.nn.Linear(32, 32, bias=False)
    with torch.no_grad():
        for adapter in linear.adapters.values():
            adapter.up.normal_()
        plain.weight.copy_(linear.weight + linear.adapters["lora"].weight() + linear.adapters["progressive"].weight())
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear(x), plain(x), rtol=1e-4, atol=1e-4)
