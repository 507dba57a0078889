"""What kernels are compared on: for every op arguments that a mixer would give it, and the comparison with the reference."""

import torch
import torch.nn.functional as F

from models.ops.kernels import run_kernel
from models.ops.kernels.table import OPS
from tests.models.cases import noise

BATCH, HEADS, D_KEY, D_VALUE = 2, 4, 16, 32
LENGTHS = (1, 17, 65, 130)


def heads(time, size, seed, n_heads=HEADS):
    return noise(BATCH, n_heads, time, size, seed=seed)


def memories(time):
    """Query, unit keys and value."""
    return heads(time, D_KEY, 1) / D_KEY**0.5, F.normalize(heads(time, D_KEY, 2), dim=-1), heads(time, D_VALUE, 3)


def rates(time):
    return noise(BATCH, HEADS, time, seed=4).sigmoid()


def log_decays(*shape):
    return F.logsigmoid(noise(*shape, seed=5)) / 4


def replaced_memories(time):
    query, removal, value = memories(time)
    log_decay = log_decays(BATCH, HEADS, time, D_KEY)
    return query, heads(time, D_KEY, 6) / 4, value, log_decay, removal, heads(time, D_KEY, 7).sigmoid()


def attention(time, n_kv_heads=HEADS):
    return tuple(heads(time, D_VALUE, seed, count) for seed, count in ((1, HEADS), (2, n_kv_heads), (3, n_kv_heads)))


def convolution(time, *, width=4):
    return noise(BATCH, time, 24, seed=1), noise(24, width, seed=2), noise(24, seed=3)


def scan(time):
    steps = F.softplus(noise(BATCH, time, 24, seed=1) - 2)
    speed = -torch.arange(1.0, 17)[:, None].repeat(1, 24)
    return steps, noise(BATCH, time, 24, seed=2), noise(BATCH, time, 16, seed=3), noise(BATCH, time, 16, seed=4), speed


def duality(time):
    steps = F.softplus(noise(BATCH, HEADS, time, seed=1) - 2)
    write, read = heads(time, 16, 3, 2), heads(time, 16, 4, 2)
    return heads(time, D_VALUE, 2), steps, -torch.arange(1.0, 1 + HEADS), write, read


CASES = {
    "attend": [
        (attention, {"causal": True, "window": None}),
        (attention, {"causal": False, "window": None}),
        (lambda time: attention(time, 2), {"causal": True, "window": 5}),
        (lambda time: attention(time, 1), {"causal": False, "window": 40}),
    ],
    "causal_convolution": [
        (convolution, {"silu": True}),
        (lambda time: (*convolution(time, width=2)[:2], None), {"silu": False}),
    ],
    "selective_scan": [(scan, {})],
    "state_space_duality": [(duality, {})],
    "linear_attention": [(memories, {})],
    "retention": [(lambda time: (*memories(time), torch.tensor([-0.5, -0.2, -0.1, -0.01])), {})],
    "gated_linear_attention": [(lambda time: (*memories(time), log_decays(BATCH, HEADS, time, D_KEY)), {})],
    "delta_rule": [(lambda time: (*memories(time), rates(time)), {})],
    "gated_delta_rule": [(lambda time: (*memories(time), rates(time), log_decays(BATCH, HEADS, time)), {})],
    "kimi_delta_rule": [(lambda time: (*memories(time), rates(time), log_decays(BATCH, HEADS, time, D_KEY)), {})],
    "rwkv6_recurrence": [
        (lambda time: (*memories(time), log_decays(BATCH, HEADS, time, D_KEY), noise(HEADS, D_KEY, seed=6)), {})
    ],
    "rwkv7_recurrence": [(replaced_memories, {})],
}
KERNELS = [(op, kernel.name) for op in CASES for kernel in OPS[op].kernels]
# Whose kernels know no float32 (of attention, the first).
ONLY_HALVES = {"attend", "delta_rule", "rwkv7_recurrence"}
# What is a number for each head or weight, and not of a position: no gradient comes back for it, or it stays in float32.
FIXED = {"retention": {3}}
EXACT = {"rwkv7_recurrence": {3}, "selective_scan": {4}, "state_space_duality": {1, 2}, "causal_convolution": {1, 2}}


def arguments(op, case, time, *, dtype=torch.float32, device="cpu"):
    """The tensors and options of a case; activations in `dtype`, decays and weights in float32."""
    make, options = CASES[op][case]
    n_activations = 3 if op not in EXACT else 6
    tensors = [
        None
        if value is None
        else value.to(device, torch.float32 if index >= n_activations or index in EXACT.get(op, ()) else dtype)
        for index, value in enumerate(make(time))
    ]
    return tensors, options


def result(op, name, tensors, options):
    """The output, and the gradients of a weighted sum of it by every tensor that gets one."""
    tensors = [None if value is None else value.clone() for value in tensors]
    asked = [
        value.requires_grad_() for index, value in enumerate(tensors) if value is not None and index not in FIXED.get(op, ())
    ]
    output = run_kernel(op, name, *tensors, **options)
    weighting = noise(*output.shape, seed=9).to(output)
    return [output, *torch.autograd.grad((output.float() * weighting.float()).sum(), asked)]


def assert_parity(op, name, tensors, options, *, tolerance):
    """Output and gradients are the reference's in float32 on the same numbers, but for a `tolerance` of their norm."""
    found = result(op, name, tensors, options)
    exact = [None if value is None else value.float() for value in tensors]
    expected = result(op, "reference", exact, options)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        assert one.isfinite().all(), index
        # A position alone gives some of them no gradient at all: the rounding of nothing is compared with one.
        error = (one.float() - other).norm() / other.norm().clamp(min=1e-2)
        assert error < tolerance, f"{'output' if index == 0 else f'gradient {index - 1}'}: {error:.2e}"
