"""Gated DeltaNet and KDA against the modules of Qwen3-Next and Kimi Linear in transformers: same weights, same outputs."""

import pytest
import torch

from models.mixers.gated_delta_net import GatedDeltaNet
from models.mixers.kimi_delta_attention import KimiDeltaAttention
from tests.models.cases import noise

pytest.importorskip("transformers")
from transformers.models.kimi_linear.configuration_kimi_linear import KimiLinearConfig
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

D_MODEL, N_HEADS, D_CONV, NORM_EPS = 32, 4, 4, 1e-5
D_KEY = D_MODEL // N_HEADS

each_length = pytest.mark.parametrize("time", [1, 2, 33, 100])


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def by_head(*linears):
    """The rows of several linears, head by head."""
    return torch.cat([linear.weight.unflatten(0, (N_HEADS, -1)) for linear in linears], dim=1).flatten(0, 1)


def taps(mixer):
    return torch.cat([convolve.weight for convolve in mixer.convolutions])[:, None]


def spread(parameter):
    """Away from a start at one value for all, which would hide an exchange."""
    return torch.nn.init.uniform_(parameter, 0.5, 1.5)


def qwen(ours):
    config = Qwen3NextConfig(
        hidden_size=D_MODEL,
        linear_num_key_heads=N_HEADS,
        linear_num_value_heads=N_HEADS,
        linear_key_head_dim=D_KEY,
        linear_value_head_dim=ours.d_value,
        linear_conv_kernel_dim=D_CONV,
        rms_norm_eps=NORM_EPS,
    )
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    weights = {
        "in_proj_qkvz.weight": by_head(ours.query, ours.key, ours.value, ours.gate),
        "in_proj_ba.weight": by_head(ours.rate, ours.decay),
        "conv1d.weight": taps(ours),
        "dt_bias": ours.dt_bias,
        "A_log": ours.A_log,
        "norm.weight": ours.norm.weight,
        "out_proj.weight": ours.output.weight,
    }
    theirs.load_state_dict(weights)
    return theirs


def kimi(ours):
    config = KimiLinearConfig(
        hidden_size=D_MODEL,
        linear_num_heads=N_HEADS,
        linear_head_dim=D_KEY,
        linear_conv_kernel_dim=D_CONV,
        rms_norm_eps=NORM_EPS,
    )
    theirs = KimiLinearDeltaAttention(config, layer_idx=0)
    linears = {
        "q_proj": ours.query,
        "k_proj": ours.key,
        "v_proj": ours.value,
        "forget_gate.f_a_proj": ours.decay.down,
        "forget_gate.f_b_proj": ours.decay.up,
        "b_proj": ours.rate,
        "g_a_proj": ours.gate.down,
        "g_b_proj": ours.gate.up,
        "o_proj": ours.output,
    }
    weights = {f"{name}.weight": linear.weight for name, linear in linears.items()}
    weights |= {
        "conv1d.weight": taps(ours),
        "forget_gate.dt_bias": ours.dt_bias,
        "forget_gate.A_log": ours.A_log[None, None, :, None],
        "o_norm.weight": ours.norm.weight,
    }
    theirs.load_state_dict(weights)
    return theirs


def assert_same(ours, theirs, time):
    x = noise(2, time, D_MODEL)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = ours(first), theirs(second)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    found = [torch.autograd.grad((y * noise(*y.shape, seed=2)).sum(), x) for y, x in zip(outputs, (first, second), strict=True)]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@each_length
@pytest.mark.parametrize("expand_v", [1.0, 2.0])
def test_gated_delta_net_is_that_of_qwen3_next(time, expand_v):
    ours = seeded(lambda: GatedDeltaNet(D_MODEL, n_heads=N_HEADS, expand_v=expand_v, d_conv=D_CONV))
    seeded(lambda: spread(ours.norm.weight))
    assert_same(ours, qwen(ours), time)


@each_length
def test_kimi_delta_attention_is_that_of_kimi_linear(time):
    """As long as no channel forgets all at once: ours stops at a decay of e^-5."""
    ours = seeded(lambda: KimiDeltaAttention(D_MODEL, n_heads=N_HEADS, d_conv=D_CONV))
    seeded(lambda: spread(ours.norm.weight))
    assert_same(ours, kimi(ours), time)
