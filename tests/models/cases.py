"""What the contract tests run: every registered kind with its defaults, and the options that change its form."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import CHANNEL_MIXERS, MIXERS

D_MODEL = 32
MAX_LENGTH = 80

VARIANTS = {
    "attention heads": {"kind": "attention", "n_heads": 4, "bias": True},
    "attention shared keys": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "d_conv": 3},
    "attention window": {"kind": "attention", "n_heads": 4, "n_kv_heads": 1, "window": 5},
    "attention wide window": {"kind": "attention", "n_heads": 2, "window": 40},
    "attention unplaced": {"kind": "attention", "n_heads": 2, "rope_base": None},
    "linear attention heads": {"kind": "linear_attention", "n_heads": 4, "d_conv": 4},
    "gla heads": {"kind": "gated_linear_attention", "n_heads": 4, "expand_k": 0.5, "expand_v": 2.0, "d_conv": 2},
    "gdn heads": {"kind": "gated_delta_net", "n_heads": 4, "expand_v": 2.0},
    "gdn no convolution": {"kind": "gated_delta_net", "n_heads": 2, "d_conv": 0},
    "mamba small": {"kind": "mamba", "d_state": 4, "expand": 1, "d_conv": 1, "dt_rank": 1},
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
}


def build(registry, options, seed=0, **sizes):
    """A component with the sizes of these tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.build(registry.part(options), **{"d_model": D_MODEL, "max_length": MAX_LENGTH, **sizes})


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
        by_parameter = torch.autograd.grad((together * weighting).sum(), list(parameters.values()))
        for index, module in enumerate(modules):
            torch.testing.assert_close(together[index], module(x[index]), rtol=1e-5, atol=1e-5)
            alone = gradients(module, x[index])
            for name, gradient in zip(parameters, by_parameter, strict=True):
                torch.testing.assert_close(gradient[index], alone[name], rtol=1e-4, atol=1e-4, msg=name)
