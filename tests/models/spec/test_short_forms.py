"""The MAD suite's layers at width 128: parameters, state and operations against the published sizes."""

import pytest
import torch

from configs import ConfigError
from configs.load import validate
from models import RackSpec
from models.spec.registries import CHANNEL_MIXERS, MIXERS
from models.spec.short_forms import LAYERS, layer, layer_names
from tests.models.flops import counted

SIZES = {  # parameters, state at 128 positions (channel mixers: None)
    "attention": (66_048, 32_768),
    "mh-attention": (66_048, 32_768),
    "sliding-attention": (66_048, 8_448),
    "mh-sliding-attention": (66_048, 8_448),
    "linear-attention": (131_584, 16_384),
    "mh-linear-attention": (65_824, 1_024),
    "gated-linear-attention": (86_272, 16_384),
    "mh-gated-linear-attention": (86_160, 2_048),
    "gated-delta-net": (83_842, 16_384),
    "mh-gated-delta-net": (85_536, 2_048),
    "delta-net": (67_328, 16_384),
    "mh-delta-net": (68_112, 2_048),
    "kimi-delta-attention": (75_649, 16_384),
    "mh-kimi-delta-attention": (76_440, 2_048),
    "kernel-attention": (65_536, 2_048),
    "mh-kernel-attention": (65_536, 2_048),
    "mla": (54_304, 128 * (32 + 8)),
    "retention": (82_048, 16_384),
    "mh-retention": (81_936, 2_048),
    "rwkv6-time-mixer": (140_544, 2_048),
    "rwkv7-time-mixer": (91_776, 2_048),
    "hyena": (124_348, 2_048),
    "mh-hyena": (30_862, 2_048),
    "hyena-experts": (57_464, 2_048),
    "mamba": (107_264, 1_024),
    "mamba2": (103_000, 1_024),
    "mlp": (131_072, None),
    "swiglu": (135_168, None),
    "moe-mlp": (50_176, None),
    "rwkv-channel-mixer": (147_712, None),
}


def build_layer(name):
    (block,) = RackSpec(d_model=128, vocab_size=1, max_length=128, layers=[name]).build().blocks()
    return block.mixer or block.mlp


def test_every_layer_of_the_suite_is_there():
    assert set(SIZES) <= set(layer_names())


@pytest.mark.parametrize("name", layer_names())
def test_every_layer_says_what_it_is(name):
    first_line = (LAYERS / f"{name}.yaml").read_text().splitlines()[0]
    assert first_line.startswith("# ")


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    module = build_layer(name)
    n_parameters, state = SIZES[name]
    assert sum(parameter.numel() for parameter in module.parameters()) == n_parameters
    if state is not None:
        assert module.state_size(128) == state


@pytest.mark.parametrize("name", SIZES)
def test_flops_are_what_runs(name):
    with torch.device("meta"):
        module = build_layer(name)
    for time in (1, 20, 97, 128):
        assert module.flops(time) == pytest.approx(counted(module, torch.empty(1, time, 128, device="meta"))), time


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("swiglu", layer("swiglu")[1]),
        ("gated_delta_net", layer("gated-delta-net")[1]),
        ("gated_delta_net(n_heads=4)", {"kind": "gated_delta_net", "n_heads": 4}),
        ("gated-delta-net(n_heads=4)", {**layer("gated-delta-net")[1], "n_heads": 4}),
        ("attention()", {"kind": "attention"}),
        ("mamba2(d_head=32)", {"kind": "mamba2", "d_head": 32}),
        (" mh-attention ( window = 8 , d_conv=4 ) ", {**layer("mh-attention")[1], "window": 8, "d_conv": 4}),
        ("mh_attention(window=8)", {**layer("mh-attention")[1], "window": 8}),
        ("mlp(d_ff=5e+2)", {"kind": "mlp", "d_ff": 500.0}),
        ("moe", {"kind": "moe"}),
        ("moe(n_experts=4, n_active=2,)", {"kind": "moe", "n_experts": 4, "n_active": 2}),
        (
            "stochastic(main=a, mixers={a: {kind: mlp, d_ff: 8}, b: {kind: mlp, d_ff: 16}})",
            {"kind": "stochastic", "main": "a", "mixers": {"a": {"kind": "mlp", "d_ff": 8}, "b": {"kind": "mlp", "d_ff": 16}}},
        ),
    ],
)
def test_a_layer_in_words_is_the_layer_in_full(text, part):
    assert layer(text) == (layer(part)[0], part)


def test_a_name_with_options_changes_no_other_layer():
    layer("mh-attention(n_heads=4)")
    assert layer("mh-attention")[1]["n_heads"] == 16


@pytest.mark.parametrize("kind", [*MIXERS, *CHANNEL_MIXERS])
def test_a_kind_with_options_has_no_sizes_of_the_suite(kind):
    """Those are for width 128: an unmentioned one would come from a file that nobody named."""
    assert layer(f"{kind}()")[1] == {"kind": kind}


def test_layers_in_words_in_a_rack():
    rack = RackSpec(d_model=16, vocab_size=8, layers=["attention(n_heads=2, window=4)", "mlp(d_ff=8)"])
    assert rack == RackSpec(
        d_model=16, vocab_size=8, layers=[{"kind": "attention", "n_heads": 2, "window": 4}, {"kind": "mlp", "d_ff": 8}]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atention(n_heads=2)", "layers[0]: unknown layer 'atention'; did you mean 'attention'?"),
        ("attention(n_hedas=2)", "layers[0].n_hedas: unknown key 'n_hedas'; did you mean 'n_heads'?"),
        ("attention(n_heads=3)", "layers[0]: n_heads = 3 must divide d_model = 16"),
    ],
)
def test_what_is_wrong_with_a_layer_in_words_is_told(text, message):
    with pytest.raises(ConfigError) as caught:
        validate(RackSpec, {"d_model": 16, "vocab_size": 8, "layers": [text]}, "rack")
    assert str(caught.value).startswith(f"rack: {message}")
