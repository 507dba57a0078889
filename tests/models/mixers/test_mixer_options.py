"""Sizes that cannot be are refused by name; options do what they say."""

import pytest
import torch

from models import CHANNEL_MIXERS, MIXERS
from models.mixers.gated_linear_attention import GatedLinearAttention
from models.mixers.hyena import Hyena
from models.mixers.linear_attention import LinearAttention
from models.mixers.mamba import Mamba
from models.ops.recurrences.gated_linear_attention import LOWEST_LOG_DECAY
from tests.models.cases import D_MODEL, build, noise

REFUSED = [
    (MIXERS, {"kind": "attention", "n_heads": 5}, "n_heads = 5 must divide d_model = 32: choose one of 1, 2, 4, 8, 16, 32"),
    (MIXERS, {"kind": "attention", "n_heads": 0}, "n_heads = 0 must divide d_model = 32"),
    (MIXERS, {"kind": "attention", "n_heads": 4, "n_kv_heads": 3}, "n_kv_heads = 3 must divide n_heads = 4"),
    (MIXERS, {"kind": "attention", "window": 0}, "window = 0 must be at least 1"),
    (MIXERS, {"kind": "attention", "n_heads": 32}, "the head size = 1 must be an even number to be rotated, not 1"),
    (MIXERS, {"kind": "attention", "rope_fraction": 0.0}, "rope_fraction = 0.0 must be above 0 and at most 1"),
    (MIXERS, {"kind": "attention", "rope_fraction": 1.5}, "rope_fraction = 1.5 must be above 0 and at most 1"),
    (
        MIXERS,
        {"kind": "attention", "n_heads": 4, "rope_fraction": 0.3},
        "rope_fraction = 0.3 of the head size = 8 must be an even .*, not 2.4",
    ),
    (MIXERS, {"kind": "attention", "d_head": 0}, "d_head = 0 must be at least 1"),
    (MIXERS, {"kind": "attention", "n_heads": 0, "d_head": 4}, "n_heads = 0 must be at least 1"),
    (MIXERS, {"kind": "attention", "rope_base": -1.0}, "rope_base = -1.0 must be positive"),
    (MIXERS, {"kind": "attention", "d_conv": -1}, "d_conv = -1 must be at least 0"),
    (MIXERS, {"kind": "attention", "d_conv": 4, "causal": False}, "d_conv = 4 looks backwards only"),
    (MIXERS, {"kind": "kernel_attention", "n_heads": 3}, "n_heads = 3 must divide d_model = 32"),
    (MIXERS, {"kind": "kernel_attention", "n_heads": 32}, "the head size = 1 must be an even number to be rotated"),
    (MIXERS, {"kind": "kernel_attention", "kernel_dim": 0}, "kernel_dim = 0 must be at least 1"),
    (MIXERS, {"kind": "kernel_attention", "kernel_type": "elu", "kernel_dim": 8}, "kernel_dim = 8: elu has as many .*, 32"),
    (MIXERS, {"kind": "kernel_attention", "kernel_type": "rff_gaussian", "kernel_dim": 9}, "kernel_dim = 9 must be even"),
    (MIXERS, {"kind": "kernel_attention", "d_conv": 4, "causal": False}, "d_conv = 4 looks backwards only"),
    (MIXERS, {"kind": "kernel_attention", "seed": -1}, "seed = -1 must be at least 0"),
    (MIXERS, {"kind": "linear_attention", "n_heads": 3}, "n_heads = 3 must divide d_model = 32"),
    (MIXERS, {"kind": "linear_attention", "d_conv": -2}, "d_conv = -2"),
    (MIXERS, {"kind": "gated_linear_attention", "n_heads": 3}, "n_heads = 3 must divide expand_k"),
    (MIXERS, {"kind": "gated_linear_attention", "expand_v": 0.3}, "expand_v = 0.3 times d_model = 32 must be a whole number"),
    (MIXERS, {"kind": "gated_linear_attention", "gate_rank": 0}, "gate_rank = 0"),
    (MIXERS, {"kind": "gated_linear_attention", "gate_logit_normalizer": 0.0}, "gate_logit_normalizer = 0.0 must be positive"),
    (MIXERS, {"kind": "gated_delta_net", "n_heads": 3}, "n_heads = 3 must divide d_model = 32"),
    (MIXERS, {"kind": "gated_delta_net", "expand_v": 0.0}, "expand_v = 0.0"),
    (MIXERS, {"kind": "gated_delta_net", "d_conv": -1}, "d_conv = -1"),
    (MIXERS, {"kind": "mamba", "d_state": 0}, "d_state = 0"),
    (MIXERS, {"kind": "mamba", "d_conv": 0}, "d_conv = 0"),
    (MIXERS, {"kind": "mamba", "expand": 0}, "expand = 0"),
    (MIXERS, {"kind": "mamba", "dt_rank": 0}, "dt_rank = 0"),
    (MIXERS, {"kind": "hyena", "n_heads": 3}, "n_heads = 3 must divide expand"),
    (MIXERS, {"kind": "hyena", "proj_groups": 5}, "proj_groups = 5 must divide expand"),
    (MIXERS, {"kind": "hyena", "filter_order": 0}, "filter_order = 0"),
    (MIXERS, {"kind": "hyena", "d_conv": 0}, "d_conv = 0"),
    (MIXERS, {"kind": "hyena_experts", "n_active": 1}, "n_active = 1 must be at least 2"),
    (MIXERS, {"kind": "hyena_experts", "n_active": 9}, "n_active = 9 must .* at most n_experts = 8"),
    (MIXERS, {"kind": "hyena_experts", "d_expert": 0}, "d_expert = 0"),
    (MIXERS, {"kind": "hyena_experts", "filter_order": 0}, "filter_order = 0"),
    (MIXERS, {"kind": "hyena_experts", "d_conv": 0}, "d_conv = 0"),
    (CHANNEL_MIXERS, {"kind": "mlp", "d_ff": 0}, "d_ff = 0"),
    (CHANNEL_MIXERS, {"kind": "swiglu", "d_ff": -1}, "d_ff = -1"),
    (CHANNEL_MIXERS, {"kind": "moe", "n_active": 9}, r"n_active = 9 must .* at most n_experts = 8"),
    (CHANNEL_MIXERS, {"kind": "moe", "n_active": 1}, "n_active = 1 must be at least 2"),
    (CHANNEL_MIXERS, {"kind": "moe", "d_expert": 0}, "d_expert = 0"),
]


@pytest.mark.parametrize(("registry", "options", "message"), REFUSED, ids=[f"{part}" for _, part, _ in REFUSED])
def test_refused(registry, options, message):
    with pytest.raises(ValueError, match=message):
        build(registry, options)


def test_hyena_knows_how_long_its_filters_are():
    with pytest.raises(ValueError, match=r"81 positions.*max_length = 80"):
        Hyena(D_MODEL, 80)(noise(1, 81, D_MODEL))
    assert Hyena(D_MODEL, 1)(noise(1, 1, D_MODEL)).isfinite().all()


def test_derived_sizes_are_kept():
    assert Mamba(40).dt_rank == 3
    assert build(MIXERS, {"kind": "attention", "n_heads": 4}).n_kv_heads == 4
    assert build(MIXERS, {"kind": "hyena", "expand": 2}).n_heads == 64
    assert [build(CHANNEL_MIXERS, kind, d_model=128).d_ff for kind in ("mlp", "swiglu")] == [512, 352]
    assert build(CHANNEL_MIXERS, "moe").d_expert == 4


def test_mamba_keeps_its_time_scales():
    mixer = Mamba(64)
    assert mixer.time_step.bias.keep_init
    steps = torch.nn.functional.softplus(mixer.time_step.bias)
    assert 0.9e-3 < steps.min() < 3e-3
    assert 0.03 < steps.max() < 0.11


def test_a_strong_gate_stops_at_the_lowest_decay():
    mixer = GatedLinearAttention(16)
    torch.nn.init.constant_(mixer.decay_up.bias, -1e6)
    assert (mixer._log_decay(noise(2, 3, 16)) == LOWEST_LOG_DECAY).all()


def test_the_learned_map_by_its_quadratic_form():
    mixer, x = LinearAttention(16, feature_map="product").double(), noise(2, 70, 16, dtype=torch.float64)
    query, key = (part.first(linear(x)) * part.second(linear(x)) for part, linear in _maps(mixer))
    scores = (query @ key.mT).tril()
    expected = mixer.output(scores @ mixer.value(x) / (scores.sum(-1, keepdim=True) + 1e-12))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-6, atol=1e-6)
    state, outputs = mixer.initial_state(2), []
    for position in x.unbind(1):
        output, state = mixer.step(position, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), expected, rtol=1e-6, atol=1e-6)


def _maps(mixer):
    return (mixer.query_map, mixer.query), (mixer.key_map, mixer.key)
