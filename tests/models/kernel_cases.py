"""What kernels are compared on: for every op arguments that a mixer would give it, and the comparison with the reference."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from models.ops.kernels import run_kernel
from models.ops.kernels.table import OPS
from tests.models.cases import noise

LENGTHS = (1, 17, 65, 130)
LONG = (256, 1000)


@dataclass(frozen=True)
class Sizes:
    """Of a head's keys and values, of the state of a channel or head of a state-space model, and how many there are."""

    d_key: int
    d_value: int
    d_state: int
    batch: int = 2
    n_heads: int = 4


SMALL = Sizes(d_key=16, d_value=32, d_state=16)
# Those of real models, and those at which kernels were wrong that are right at smaller ones.
LARGE = (Sizes(d_key=64, d_value=64, d_state=64), Sizes(d_key=128, d_value=128, d_state=128))


def heads(time, sizes, width, seed, n_heads=None):
    return noise(sizes.batch, n_heads or sizes.n_heads, time, width, seed=seed)


def memories(time, sizes):
    """Query, unit keys and value."""
    query, key = (heads(time, sizes, sizes.d_key, seed) for seed in (1, 2))
    return query / sizes.d_key**0.5, F.normalize(key, dim=-1), heads(time, sizes, sizes.d_value, 3)


def rates(time, sizes):
    return noise(sizes.batch, sizes.n_heads, time, seed=4).sigmoid()


def log_decays(time, sizes, *width):
    return F.logsigmoid(noise(sizes.batch, sizes.n_heads, time, *width, seed=5)) / 4


def with_decays(time, sizes, *others):
    """What remembers with a decay for each key channel."""
    return (*memories(time, sizes), *others, log_decays(time, sizes, sizes.d_key))


def replaced_memories(time, sizes):
    query, removal, value, log_decay = with_decays(time, sizes)
    key = heads(time, sizes, sizes.d_key, 6) / sizes.d_key**0.5
    return query, key, value, log_decay, removal, heads(time, sizes, sizes.d_key, 7).sigmoid()


def attention(time, sizes, n_kv_heads=None):
    return tuple(heads(time, sizes, sizes.d_value, seed, count) for seed, count in ((1, None), (2, n_kv_heads), (3, n_kv_heads)))


def convolution(time, sizes, *, width=4):
    n_channels = sizes.d_value // 4 * 3
    return noise(sizes.batch, time, n_channels, seed=1), noise(n_channels, width, seed=2), noise(n_channels, seed=3)


def scan(time, sizes):
    d_state = sizes.d_state
    steps = F.softplus(noise(sizes.batch, time, 24, seed=1) - 2)
    speed = -torch.arange(1.0, 1 + d_state)[:, None].repeat(1, 24)
    write, read = (noise(sizes.batch, time, d_state, seed=seed) for seed in (3, 4))
    return steps, noise(sizes.batch, time, 24, seed=2), write, read, speed


def duality(time, sizes):
    steps = F.softplus(noise(sizes.batch, sizes.n_heads, time, seed=1) - 2)
    write, read = (heads(time, sizes, sizes.d_state, seed, 2) for seed in (3, 4))
    return heads(time, sizes, sizes.d_value, 2), steps, -torch.arange(1.0, 1 + sizes.n_heads), write, read


CASES = {
    "attend": [
        (attention, {"causal": True, "window": None}),
        (attention, {"causal": False, "window": None}),
        (partial(attention, n_kv_heads=2), {"causal": True, "window": 5}),
        (partial(attention, n_kv_heads=1), {"causal": False, "window": 40}),
    ],
    "causal_convolution": [
        (convolution, {"silu": True}),
        (lambda time, sizes: (*convolution(time, sizes, width=2)[:2], None), {"silu": False}),
    ],
    "selective_scan": [(scan, {})],
    "state_space_duality": [(duality, {})],
    "linear_attention": [(memories, {})],
    "retention": [(lambda time, sizes: (*memories(time, sizes), torch.tensor([-0.5, -0.2, -0.1, -0.01])[: sizes.n_heads]), {})],
    "gated_linear_attention": [(with_decays, {})],
    "delta_rule": [(lambda time, sizes: (*memories(time, sizes), rates(time, sizes)), {})],
    "gated_delta_rule": [(lambda time, sizes: (*memories(time, sizes), rates(time, sizes), log_decays(time, sizes)), {})],
    "kimi_delta_rule": [(lambda time, sizes: with_decays(time, sizes, rates(time, sizes)), {})],
    "rwkv6_recurrence": [(lambda time, sizes: (*with_decays(time, sizes), noise(sizes.n_heads, sizes.d_key, seed=6)), {})],
    "rwkv7_recurrence": [(replaced_memories, {})],
}
KERNELS = [(op, kernel.name) for op in CASES for kernel in OPS[op].kernels]
# Whose kernels know no float32 (of attention, the first).
ONLY_HALVES = {"attend", "delta_rule", "rwkv7_recurrence"}
# What is a number for each head or weight, and not of a position: no gradient comes back for it, or it stays in float32.
FIXED = {"retention": {3}}
EXACT = {"rwkv7_recurrence": {3}, "selective_scan": {4}, "state_space_duality": {1, 2}, "causal_convolution": {1, 2}}


def kernel_of(op, name):
    return next(kernel for kernel in OPS[op].kernels if kernel.name == name)


def taken(monkeypatch, op, tensors, options, name="auto"):
    """The name of the kernel that runs, without running it."""
    for kernel in OPS[op].kernels:
        monkeypatch.setitem(vars(kernel), "call", lambda *_, _name=kernel.name, **__: _name)
    found = run_kernel(op, name, *tensors, **options)
    return found if isinstance(found, str) else "reference"


def arguments(op, case, time, *, sizes=SMALL, dtype=torch.float32, device="cpu"):
    """The tensors and options of a case; activations in `dtype`, decays and weights in float32."""
    make, options = CASES[op][case]
    n_activations = 3 if op not in EXACT else 6
    tensors = [
        None
        if value is None
        else value.to(device, torch.float32 if index >= n_activations or index in EXACT.get(op, ()) else dtype)
        for index, value in enumerate(make(time, sizes))
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


def errors(op, name, tensors, options):
    """How far output and gradients are from the reference's in float32 on the same numbers, as parts of their norms."""
    found = result(op, name, tensors, options)
    exact = [None if value is None else value.float() for value in tensors]
    expected = result(op, "reference", exact, options)
    assert all(one.shape == other.shape and one.isfinite().all() for one, other in zip(found, expected, strict=True))
    # A position alone gives some of them no gradient at all: the rounding of nothing is compared with one.
    pairs = zip(found, expected, strict=True)
    return [((one.float() - other).norm() / other.norm().clamp(min=1e-2)).item() for one, other in pairs]


def assert_parity(op, name, tensors, options, *, tolerance):
    """Output and gradients are the reference's in float32 on the same numbers, but for a `tolerance` of their norm."""
    for index, error in enumerate(errors(op, name, tensors, options)):
        assert error < tolerance, f"{'output' if index == 0 else f'gradient {index - 1}'}: {error:.2e}"
