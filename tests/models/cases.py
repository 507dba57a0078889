"""What the contract tests run: every registered kind with its defaults, and the options that change its form."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import CHANNEL_MIXERS, MIXERS

D_MODEL = 32
MAX_LENGTH = 80
IDLE = {"identity"}
"""Kinds that pass every position as it is: no past, no state, no operations, no parameters."""

VARIANTS = {
    "attention heads": {"kind": "attention", "n_heads": 4, "bias": True},
    "attention shared keys": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "d_conv": 3},
    "attention window": {"kind": "attention", "n_heads": 4, "n_kv_heads": 1, "window": 5},
    "attention wide window": {"kind": "attention", "n_heads": 2, "window": 40},
    "attention unplaced": {"kind": "attention", "n_heads": 2, "rope_base": None},
    "attention gated": {
        "kind": "attention",
        "n_heads": 3,
        "d_head": 16,
        "qk_norm": True,
        "output_gate": True,
        "rope_fraction": 0.25,
    },
    "attention sink tokens": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "window": 5, "n_sink_tokens": 2},
    "attention sinks": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "sinks": True},
    "attention sinks window": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "sinks": True, "window": 5},
    "attention sinks wide window": {"kind": "attention", "n_heads": 2, "sinks": True, "window": 40},
    "mla ranks": {"kind": "mla", "n_heads": 4, "d_head": 6, "d_rope": 2, "kv_rank": 7, "query_rank": 5},
    "kernel attention heads": {"kind": "kernel_attention", "n_heads": 4, "kernel_dim": 20, "d_conv": 2, "seed": 3},
    "kernel attention elu": {"kind": "kernel_attention", "n_heads": 4, "kernel_type": "elu"},
    "kernel attention gaussian": {"kind": "kernel_attention", "n_heads": 2, "kernel_type": "rff_gaussian", "rope_base": None},
    "kernel attention laplacian": {"kind": "kernel_attention", "n_heads": 4, "kernel_type": "rff_laplacian", "kernel_dim": 30},
    "delta net heads": {"kind": "delta_net", "n_heads": 4, "expand_v": 2.0},
    "delta net no convolution": {"kind": "delta_net", "n_heads": 2, "d_conv": 0},
    "kda heads": {"kind": "kimi_delta_attention", "n_heads": 4, "expand_v": 2.0, "gate_rank": 3},
    "kda no convolution": {"kind": "kimi_delta_attention", "n_heads": 2, "d_conv": 0},
    "retention heads": {"kind": "retention", "n_heads": 4, "expand_v": 2.0},
    "rwkv6 heads": {"kind": "rwkv6", "n_heads": 4, "shift_rank": 3, "decay_rank": 1},
    "rwkv7 heads": {"kind": "rwkv7", "n_heads": 4, "decay_rank": 1, "rate_rank": 3, "gate_rank": 5},
    "linear attention heads": {"kind": "linear_attention", "n_heads": 4, "d_conv": 4},
    "gla heads": {"kind": "gated_linear_attention", "n_heads": 4, "expand_k": 0.5, "expand_v": 2.0, "d_conv": 2},
    "gdn heads": {"kind": "gated_delta_net", "n_heads": 4, "expand_v": 2.0},
    "gdn no convolution": {"kind": "gated_delta_net", "n_heads": 2, "d_conv": 0},
    "mamba small": {"kind": "mamba", "d_state": 4, "expand": 1, "d_conv": 1, "dt_rank": 1},
    "mamba2 heads": {"kind": "mamba2", "d_state": 6, "d_head": 8, "n_groups": 2, "d_conv": 1},
    "hyena experts odd": {"kind": "hyena_experts", "n_experts": 3, "n_active": 2, "d_expert": 5, "filter_order": 3, "d_conv": 1},
    "hyena heads": {"kind": "hyena", "n_heads": 4, "expand": 2, "proj_groups": 4, "filter_order": 3},
}
# Kinds without defaults. One choice: what the others of several do not do is told in test_supernet.py.
REQUIRED = {
    "mixer": {"stochastic": {"main": "gdn", "mixers": {"gdn": {"kind": "gated_delta_net", "n_heads": 2}}}},
    "channel mixer": {"stochastic": {"main": "wide", "mixers": {"wide": {"kind": "swiglu"}}}},
}
MIXER_CASES = {kind: {"kind": kind, **REQUIRED["mixer"].get(kind, {})} for kind in MIXERS} | VARIANTS
CHANNEL_MIXER_CASES = {kind: {"kind": kind, **REQUIRED["channel mixer"].get(kind, {})} for kind in CHANNEL_MIXERS} | {
    "mlp bias": {"kind": "mlp", "d_ff": 24, "bias": True},
    "swiglu bias": {"kind": "swiglu", "d_ff": 24, "bias": True},
    "moe odd": {"kind": "moe", "n_experts": 3, "n_active": 2, "d_expert": 5},
    "moe shared": {"kind": "moe", "n_experts": 4, "n_active": 2, "d_expert": 5, "n_shared": 3},
}


def build(registry, options, seed=0, **sizes):
    """A component with the sizes of these tests."""
    part = registry.part(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = registry.build(part, **{"d_model": D_MODEL, "max_length": MAX_LENGTH, **sizes})
    if "*" in part.parameters:  # short for bias: true, which a rack applies
        for linear in module.modules():
            if isinstance(linear, torch.nn.Linear) and linear.bias is None:
                linear.bias = torch.nn.Parameter(linear.weight.new_zeros(linear.out_features))
    return module


def noise(*shape, seed=1, dtype=torch.float32):
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(module, x):
    """Of a weighted sum of the outputs, by every parameter and the input."""
    x = x.clone().requires_grad_()
    parameters = dict(module.named_parameters())
    y = module(x)
    found = torch.autograd.grad((y * noise(*y.shape, seed=2)).sum(), [*parameters.values(), x], allow_unused=True)
    return dict(zip([*parameters, "x"], found, strict=True))


def packed_equals_separate(modules, x):
    """Run two modules of one shape as one, under vmap with gradients from outside, and compare with one after the other."""
    parameters, _ = torch.func.stack_module_state(modules)

    def call(weights, x):
        return torch.func.functional_call(modules[0], weights, (x,))

    with sdpa_kernel(SDPBackend.MATH):
        together = torch.vmap(call)(parameters, x)
        weighting = noise(*together.shape[1:], seed=2)
        by_parameter = torch.autograd.grad((together * weighting).sum(), list(parameters.values())) if parameters else ()
        for index, module in enumerate(modules):
            torch.testing.assert_close(together[index], module(x[index]), rtol=1e-5, atol=1e-5)
            alone = gradients(module, x[index])
            for name, gradient in zip(parameters, by_parameter, strict=True):
                torch.testing.assert_close(gradient[index], alone[name], rtol=1e-4, atol=1e-4, msg=name)
