"""The description of a rack: patterns, overrides, short forms, norms handed down, and a saved spec that comes back."""

import copy
import pickle

import pytest

from configs import ConfigError, ProgressiveConfig
from configs.load import validate
from models import BackboneSpec, RackSpec
from models.spec.stack import StackSpec

SIZES = {"vocab_size": 8, "d_model": 16}
ATTENTION = {"kind": "attention", "n_heads": 2}
MLP = {"kind": "mlp", "d_ff": 8}
NAMED = {name: {"mlp": {"kind": "mlp", "d_ff": width}} for width, name in enumerate("abcd", start=1)}


def rack(**keys):
    return validate(RackSpec, {**SIZES, **keys}, "rack")


def problems(**keys):
    with pytest.raises(ConfigError) as caught:
        rack(**keys)
    return str(caught.value).splitlines()


def names_of(stack):
    """Which of the named blocks stands where, told by its width."""
    return "".join("?abcd"[block.mlp.d_ff] for block in StackSpec(**stack).expanded())


@pytest.mark.parametrize(
    ("pattern", "n_blocks", "expected"),
    [
        (["a"], 3, "aaa"),
        (["a", "b"], None, "ab"),
        (["a", "b"], 5, "ababa"),
        (["a", "b", "c"], 2, "ab"),
        (["a", "a", "b"], 7, "aabaaba"),
        ([["a", "b"], "c"], 7, "abcabca"),
        ([["a", ["b", "c"]], "d"], 6, "abcdab"),
        ([{"pattern": ["a", "b"], "n_blocks": 3}, "c"], None, "abac"),
        ([{"pattern": ["a", "b"], "n_blocks": 3}, "c"], 10, "abacabacab"),
        ([{"pattern": ["a"], "n_blocks": 2}, {"pattern": [["b", "c"], "d"], "n_blocks": 4}], None, "aabcdb"),
        ([{"pattern": ["a"]}, ["b"]], 4, "abab"),
    ],
    ids=str,
)
def test_patterns_are_repeated_and_cut(pattern, n_blocks, expected):
    used = {name: NAMED[name] for name in set(str(pattern)) & set(NAMED) if f"'{name}'" in str(pattern)}
    stack = {"pattern": pattern, "blocks": used, **({} if n_blocks is None else {"n_blocks": n_blocks})}
    assert names_of(stack) == expected
    assert names_of(StackSpec(**stack).to_dict()) == expected


def test_fixed_and_listed_stacks():
    assert names_of({"n_blocks": 3, "block": NAMED["b"]}) == "bbb"
    assert names_of({"blocks": [NAMED["c"], NAMED["a"]]}) == "ca"
    assert names_of({"blocks": [NAMED["c"], NAMED["a"]], "n_blocks": 2}) == "ca"


@pytest.mark.parametrize(
    ("stack", "path", "text"),
    [
        ({"block": {}}, "stacks[0].n_blocks", "required beside block"),
        ({"n_blocks": 2}, "stacks[0]", "give block and n_blocks, or pattern and blocks, or a list of blocks"),
        ({}, "stacks[0]", "give block and n_blocks"),
        ({"n_blocks": 0, "block": {}}, "stacks[0].n_blocks", "greater than 0 (got 0)"),
        ({"n_blocks": 2, "block": {}, "blocks": [{}]}, "stacks[0]", "give one of block, pattern with blocks, or a list"),
        ({"pattern": ["a", "f"], "blocks": {"a": {}}}, "stacks[0].pattern", "'f' is not in blocks"),
        ({"pattern": ["fsat"], "blocks": {"fast": {}}}, "stacks[0].pattern", "did you mean 'fast'?"),
        ({"pattern": [["a", ["x"]]], "blocks": {"a": {}}}, "stacks[0].pattern", "'x' is not in blocks"),
        ({"pattern": ["a"], "blocks": {"a": {}, "b": {}}}, "stacks[0].blocks.b", "not used in the pattern"),
        ({"pattern": [], "blocks": {"a": {}}}, "stacks[0].pattern", "at least 1 item"),
        ({"pattern": ["a"], "blocks": [{}]}, "stacks[0].pattern", "needs named blocks"),
        ({"blocks": []}, "stacks[0].blocks", "a list of 0 blocks"),
        ({"blocks": [{}], "n_blocks": 2}, "stacks[0].blocks", "a list of 1 blocks, but n_blocks is 2"),
        ({"pattern": [7], "blocks": {"a": {}}}, "stacks[0].pattern[0]", "a mapping is expected (got 7)"),
        ({"pattern": [{"pattern": ["a"], "n_block": 2}], "blocks": {"a": {}}}, "stacks[0].pattern[0].n_block", "did you mean"),
        ({"n_blocks": 3, "block": {}, "layers": {"3": {}}}, "stacks[0].layers.3", "'3' is no index or slice of 3 blocks"),
        ({"n_blocks": 3, "block": {}, "layers": {"-4": {}}}, "stacks[0].layers.-4", "no index or slice of 3 blocks"),
        ({"n_blocks": 3, "block": {}, "layers": {"3:": {}}}, 'stacks[0].layers["3:"]', "no index or slice of 3 blocks"),
        ({"n_blocks": 3, "block": {}, "layers": {"::0": {}}}, 'stacks[0].layers["::0"]', "no index or slice"),
        ({"n_blocks": 3, "block": {}, "layers": {"first": {}}}, "stacks[0].layers.first", "no index or slice"),
        (
            {"n_blocks": 3, "block": {}, "layers": {"0": {"dropuot": 0.1}}},
            "stacks[0].layers.0.dropuot",
            "did you mean 'dropout'?",
        ),
        ({"n_blocks": 3, "block": {}, "layers": {"0": 5}}, "stacks[0].layers.0", "a mapping is expected"),
        (
            {"n_blocks": 3, "block": {"mixer": ATTENTION}, "layers": {"-2:": {"mixer": {"n_heads": 3}}}},
            'stacks[0].layers["-2:"].mixer',
            "n_heads = 3 must divide d_model = 16",
        ),
    ],
    ids=str,
)
def test_stacks_that_contradict_themselves(stack, path, text):
    lines = problems(stacks=[stack])
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"rack: {path}: "), lines
    assert text in lines[0]


def heads(layers, n_blocks=6):
    stack = StackSpec(n_blocks=n_blocks, block={"mixer": ATTENTION, "mlp": MLP}, layers=layers)
    return [block.mixer.n_heads for block in stack.expanded()]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({"0": 4}, [4, 2, 2, 2, 2, 2]),
        ({"-1": 4}, [2, 2, 2, 2, 2, 4]),
        ({"-2:": 4}, [2, 2, 2, 2, 4, 4]),
        ({":2": 4}, [4, 4, 2, 2, 2, 2]),
        ({"1:5:2": 4}, [2, 4, 2, 4, 2, 2]),
        ({"::2": 4, "1::2": 8}, [4, 8, 4, 8, 4, 8]),
        ({":": 4, "2": 8}, [4, 4, 8, 4, 4, 4]),
        ({"2": 8, ":": 4}, [4, 4, 4, 4, 4, 4]),
        ({"5:2:-1": 8}, [2, 2, 2, 8, 8, 8]),
        ({0: 4, 3: 8}, [4, 2, 2, 8, 2, 2]),  # YAML reads an index as a number
    ],
    ids=str,
)
def test_single_layers_are_overridden_and_later_ones_win(layers, expected):
    assert heads({key: {"mixer": {"n_heads": value}} for key, value in layers.items()}) == expected


def test_overrides_in_another_order_are_another_spec():
    """They build another model, so they must not pass for it."""
    first, second = (
        StackSpec(n_blocks=2, block={"mixer": ATTENTION}, layers={key: {"mixer": {"n_heads": n}} for key, n in order})
        for order in ([("0", 4), (":", 8)], [(":", 8), ("0", 4)])
    )
    assert [block.mixer.n_heads for block in first.expanded()] == [8, 8]
    assert [block.mixer.n_heads for block in second.expanded()] == [4, 8]
    assert first != second
    assert first.fingerprint() != second.fingerprint()
    assert StackSpec(**first.to_dict()).expanded() == first.expanded()
    assert StackSpec(**second.to_dict()) == second


def test_overrides_merge_into_a_part_or_replace_it():
    stack = StackSpec(
        n_blocks=4,
        block={"mixer": {**ATTENTION, "window": 5}, "mlp": MLP},
        layers={"0": {"mixer": {"n_heads": 4}}, "1": {"mixer": {"kind": "linear_attention"}}, "2": {"mlp": None, "dropout": 0.5}},
    )
    first, second, third, fourth = stack.expanded()
    assert (first.mixer.n_heads, first.mixer.window) == (4, 5)
    assert second.mixer.kind == "linear_attention"
    assert (third.mlp, third.dropout) == (None, 0.5)
    assert (fourth.mixer.n_heads, fourth.mlp.d_ff) == (2, 8)


def test_overrides_of_a_pattern():
    stack = {"pattern": ["a", "b"], "blocks": {name: NAMED[name] for name in "ab"}, "n_blocks": 4, "layers": {"1:3": NAMED["d"]}}
    assert names_of(stack) == "addb"


def norms(block):
    return tuple(norm and norm.kind for norm in (block.mixer_norm, block.mlp_norm))


@pytest.mark.parametrize(
    ("rack_norm", "block", "expected"),
    [
        ({}, {}, ("rmsnorm", "rmsnorm")),
        ({"norm": "layernorm"}, {}, ("layernorm", "layernorm")),
        ({"norm": "layernorm"}, {"norm": "rmsnorm"}, ("rmsnorm", "rmsnorm")),
        ({"norm": "layernorm"}, {"mlp_norm": "rmsnorm"}, ("layernorm", "rmsnorm")),
        ({"norm": "layernorm"}, {"mixer_norm": None}, (None, "layernorm")),
        ({"norm": "layernorm"}, {"norm": None}, (None, None)),
        ({"norm": None}, {}, (None, None)),
        ({}, {"norm": "layernorm", "mlp_norm": "rmsnorm"}, ("layernorm", "rmsnorm")),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["block", "list", "pattern"])
def test_the_norm_is_handed_down_unless_a_block_chooses(rack_norm, block, expected, form):
    block = {"mlp": MLP, **block}
    stack = {
        "block": {"n_blocks": 1, "block": block},
        "list": {"blocks": [block]},
        "pattern": {"pattern": ["a"], "blocks": {"a": block}},
    }[form]
    spec = rack(stacks=[stack], **rack_norm)
    assert norms(spec.stacks[0].expanded()[0]) == expected
    again = RackSpec(**spec.to_dict())
    assert again == spec
    assert norms(again.stacks[0].expanded()[0]) == expected


def test_norms_keep_their_options():
    spec = rack(layers=["attention"], norm={"kind": "layernorm", "eps": 1e-3, "bias": False})
    (block,) = spec.stacks[0].expanded()
    assert block.mixer_norm.options() == {"eps": 1e-3, "bias": False}


@pytest.mark.parametrize(
    ("override", "expected"), [({"norm": "layernorm"}, ("layernorm", "layernorm")), ({"mlp_norm": None}, ("rmsnorm", None))]
)
def test_a_layer_override_of_the_norm_counts(override, expected):
    stack = StackSpec(n_blocks=2, block={"mlp": MLP}, layers={"1": override})
    assert [norms(block) for block in stack.expanded()] == [("rmsnorm", "rmsnorm"), expected]
    assert "norm" not in stack.to_dict()["layers"]["1"]


def test_layers_make_blocks():
    spec = rack(layers=["attention", "swiglu", "swiglu", "attention", "attention", "mlp"])
    blocks = spec.stacks[0].expanded()
    parts = [(block.mixer and block.mixer.kind, block.mlp and block.mlp.kind) for block in blocks]
    assert parts == [("attention", "swiglu"), (None, "swiglu"), ("attention", None), ("attention", "mlp")]


def test_names_of_layers_take_hyphens_and_underscores():
    assert rack(layers=["gated_delta_net"]) == rack(layers=["gated-delta-net"])


@pytest.mark.parametrize(
    ("keys", "path", "text"),
    [
        ({"layers": ["atention"]}, "layers[0]", "did you mean 'attention'?"),
        ({"layers": ["attention", {"kind": "mlpp"}]}, "layers[1]", "unknown kind 'mlpp'; did you mean 'mlp'?"),
        ({"layers": [{"n_heads": 2}]}, "layers[0]", "a layer is a name or a mapping with a kind"),
        ({"layers": [{"kind": "attention", "n_haeds": 2}]}, "layers[0].n_haeds", "did you mean 'n_heads'?"),
        (
            {"layers": [{"kind": "mlp", "d_ff": 10**18}]},
            "layers[0]",
            "d_ff = 1000000000000000000): Storage size",
        ),
        ({"layers": []}, "layers", "a list of layers is expected"),
        ({"layers": "attention"}, "layers", "a list of layers is expected"),
        ({"layers": ["attention"], "stacks": [{"n_blocks": 1, "block": {}}]}, "layers", "give layers or stacks, not both"),
        ({"stacks": []}, "stacks", "at least 1 item"),
        ({}, "stacks", "required, but not given"),
        ({"layers": ["attention"], "d_model": "x"}, "d_model", "(got 'x')"),
        ({"layers": ["attention"], "norm": "bathnorm"}, "norm", "unknown norm 'bathnorm'"),
        ({"layers": ["hyena"]}, "stacks[0].blocks[0].mixer", "hyena needs the rack's max_length"),
        ({"layers": ["attention"], "head": "autoencoder"}, "head", "autoencoder needs the rack's max_length"),
        (
            {"layers": ["swiglu"], "head": "autoencoder", "max_length": 4, "d_model": 15},
            "head",
            "d_model 15 is odd",
        ),
    ],
    ids=str,
)
def test_racks_that_cannot_be_built(keys, path, text):
    lines = problems(**keys)
    assert any(line.startswith(f"rack: {path}: ") and text in line for line in lines), lines
    assert len(lines) == 1, lines


def test_a_backbone_does_not_know_its_length_yet():
    assert BackboneSpec(d_model=16, layers=["hyena"]).stacks[0].expanded()[0].mixer.kind == "hyena"


def test_blocks_that_share_must_be_equal():
    blocks = [{"mlp": MLP, "share": "x"}, {"mlp": {**MLP, "d_ff": 9}, "share": "x"}]
    lines = problems(stacks=[{"blocks": blocks}])
    assert len(lines) == 1
    assert "block 1 shares 'x' with an earlier block, but their settings differ" in lines[0]
    rack(stacks=[{"blocks": blocks[:1]}, {"blocks": [blocks[0]] * 2}])


EVERYTHING = {
    "norm": {"kind": "layernorm", "eps": 1e-4},
    "tie_embeddings": True,
    "max_length": 32,
    "init_std": 0.1,
    "stacks": [
        {"n_blocks": 2, "block": {"mixer": "attention", "mlp": "swiglu", "output_scale": 0.5, "dropout": 0.1}},
        {
            "n_blocks": 5,
            "pattern": [{"pattern": ["a", "b"], "n_blocks": 3}, ["b"]],
            "blocks": {"a": {"mixer": "hyena", "mixer_post_norm": "rmsnorm"}, "b": {"mlp": MLP, "norm": None, "share": "one"}},
            "layers": {"0": {"mixer": {"filter_order": 3}}},
        },
        {"blocks": [{"mixer": {"kind": "gated-delta-net", "n_heads": 2}}, {"mlp": "moe"}]},
    ],
}


@pytest.mark.parametrize("keys", [EVERYTHING, {"layers": ["mamba", "moe-mlp"]}], ids=["everything", "layers"])
def test_a_saved_spec_comes_back(keys):
    spec = rack(**keys)
    saved = spec.to_dict()
    again = RackSpec(**saved)
    assert again == spec
    assert again.to_dict() == saved
    assert again.fingerprint() == spec.fingerprint()
    assert [stack.expanded() for stack in again.stacks] == [stack.expanded() for stack in spec.stacks]


UNSET = {"lr_scale": 1.0, "weight_decay": None, "init": None, "lora": None}


def test_short_forms_are_gone_from_a_saved_spec():
    saved = rack(layers=["mh-attention", "swiglu"], norm="layernorm", d_model=32).to_dict()
    assert "layers" not in saved
    (stack,) = saved["stacks"]
    (block,) = stack["blocks"]
    assert "norm" not in block
    assert block["mixer"] == {
        "kind": "attention",
        "n_heads": 16,
        "n_kv_heads": None,
        "d_head": None,
        "window": None,
        "n_sink_tokens": 0,
        "causal": True,
        "rope_base": 10000.0,
        "rope_fraction": 1.0,
        "rope_scaling": None,
        "d_conv": 0,
        "qk_norm": False,
        "norm_eps": 1e-5,
        "sinks": False,
        "output_gate": False,
        "kernel": "auto",
        **UNSET,
        "parameters": {"*": {**UNSET, "bias": True}},
    }
    assert block["mlp_norm"] == {"kind": "layernorm", "eps": 1e-5, "bias": True, **UNSET, "parameters": {}}


def test_short_and_long_forms_are_the_same_spec():
    long = {"stacks": [{"blocks": [{"mixer": {"kind": "attention", "bias": True}, "mlp": {"kind": "swiglu", "d_ff": 352}}]}]}
    assert rack(**long).fingerprint() == rack(layers=["attention", "swiglu"]).fingerprint()


def test_a_kernel_in_an_override_is_how_it_is_run_too():
    """Overrides are kept as plain mappings; what is in them are parts all the same."""
    mixers = {"a": ATTENTION, "b": {"kind": "linear_attention"}}
    choice = {"mixer": {"kind": "stochastic", "main": "a", "mixers": mixers}}

    def stack(kernel, n_heads=2, **override):
        mixer = {**ATTENTION, "n_heads": n_heads, "kernel": kernel}
        return StackSpec(n_blocks=3, block={"mixer": mixer, "mlp": MLP}, layers={"0": {"dropout": 0.5}, **override})

    assert stack("auto").fingerprint() == stack("reference").fingerprint() != stack("auto", n_heads=4).fingerprint()
    chosen = [
        stack("auto", **{"1": {"mixer": {**choice["mixer"], "mixers": {**mixers, "c": {**ATTENTION, "kernel": kernel}}}}})
        for kernel in ("auto", "reference")
    ]
    assert chosen[0].fingerprint() == chosen[1].fingerprint() != stack("auto", **{"1": choice}).fingerprint()
    assert chosen[0] != chosen[1]


def time_of(stack_idx, max_stacks, num_time_steps):
    return stack_idx * num_time_steps / max_stacks


def test_specs_go_to_other_processes():
    """Though the classes of their parts are made at run time; what may change goes as it is, and its copies change alone."""
    block = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": "swiglu"}
    spec = RackSpec(vocab_size=8, d_model=16, stacks=[{"n_blocks": 2, "block": block, "layers": {"1": {"mlp": None}}}])
    assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec)
    config = ProgressiveConfig(stack_time_mapping="custom", custom_time_mapping=time_of)
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert other == config
        assert other.custom_time_mapping is time_of
        other.max_stacks = 3
    assert config.max_stacks == 12


@pytest.mark.parametrize("name", ["embedding", "head"])
def test_a_rack_has_both_ends(name):
    with pytest.raises(ConfigError, match=f"{name}: a rack has one: leave {name} out for the usual"):
        validate(RackSpec, {"vocab_size": 8, "d_model": 8, name: None, "stacks": [{"blocks": [{"mixer": "identity"}]}]}, "rack")
