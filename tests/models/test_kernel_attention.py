"""Kernel attention: the linear form against the quadratic one, and what the random features estimate."""

import pytest
import torch
import torch.nn.functional as F

from models import MIXERS
from models.mixers.kernel_attention import KernelAttention
from models.ops.kernel_attention import kernel_attention
from models.ops.kernel_features import LEAST, draw_frequencies, kernel_features
from tests.models.cases import D_MODEL, build, noise
from tests.models.flops import counted

TYPES = ("favor", "rff_gaussian", "rff_laplacian", "elu")
D_HEAD = 6

each_type = pytest.mark.parametrize("kernel_type", TYPES)


def features(x, frequencies, kernel_type):
    """As in the papers, with nothing taken out."""
    if kernel_type == "elu":
        return torch.where(x > 0, x + 1, x.exp())
    n = len(frequencies)
    if kernel_type == "favor":
        x = x / x.shape[-1] ** 0.25
        return ((x[..., None, :] * frequencies).sum(-1) - (x**2).sum(-1, keepdim=True) / 2).exp() / n**0.5
    x = x / x.norm(dim=-1, keepdim=True)
    angles = (x[..., None, :] * frequencies).sum(-1) / (x.shape[-1] ** 0.5 if kernel_type == "rff_laplacian" else 1)
    return torch.cat((angles.cos(), angles.sin()), -1) / n**0.5


def quadratic(query, key, value, frequencies, *, kernel_type, causal):
    kernels = features(query, frequencies, kernel_type) @ features(key, frequencies, kernel_type).mT
    kernels = kernels.tril() if causal else kernels
    n_seen = torch.arange(1, query.shape[-2] + 1)[:, None] if causal else query.shape[-2]
    return kernels @ value / kernels.sum(-1, keepdim=True).clamp(min=n_seen * LEAST[kernel_type])


def linear(query, key, value, frequencies, *, kernel_type, causal):
    (query, _), (key, peak) = (kernel_features(part, frequencies, kernel_type) for part in (query, key))
    return kernel_attention(query, key, peak, value, causal=causal, least=LEAST[kernel_type])


@each_type
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("time", [1, 2, 17, 33, 65, 100])
def test_linear_is_quadratic(kernel_type, causal, time):
    inputs = [noise(2, 2, time, size, seed=seed, dtype=torch.float64).requires_grad_() for seed, size in enumerate((6, 6, 4))]
    frequencies = draw_frequencies(kernel_type, D_HEAD if kernel_type == "elu" else 10, D_HEAD, seed=1)
    frequencies = None if frequencies is None else frequencies.double()
    outputs = [form(*inputs, frequencies, kernel_type=kernel_type, causal=causal) for form in (linear, quadratic)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    found = [torch.autograd.grad((y * noise(*y.shape, seed=9, dtype=y.dtype)).sum(), inputs) for y in outputs]
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scales", [(30, 0.1), (0.1, 30)], ids=["short later", "long later"])
def test_features_of_all_sizes_are_held_in_float32(scales):
    """Their logarithms go from 0 to -1000: relative to the highest so far, none overflows and not all vanish."""
    query, key, value = (noise(1, 1, 80, size, seed=seed, dtype=torch.float64) for seed, size in enumerate((6, 6, 4)))
    key = key * torch.linspace(*scales, 80)[:, None]
    frequencies = draw_frequencies("favor", 12, D_HEAD, seed=1)
    parts = [kernel_features(part, frequencies.double(), "favor") for part in (query, key)]
    left, right = (found.log() + peak for found, peak in parts)
    kernels = (left[..., :, None, :] + right[..., None, :, :]).logsumexp(-1)
    assert right.amin() < -700
    expected = kernels.masked_fill(~torch.ones(80, 80, dtype=torch.bool).tril(), -torch.inf).softmax(-1) @ value
    found = linear(*(part.float() for part in (query, key, value)), frequencies, kernel_type="favor", causal=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def kernel(query, key, kernel_type):
    if kernel_type == "favor":
        return (query @ key.mT / query.shape[-1] ** 0.5).exp()
    difference = F.normalize(query, dim=-1)[:, None] - F.normalize(key, dim=-1)
    if kernel_type == "rff_gaussian":
        return (-difference.square().sum(-1) / 2).exp()
    return (-difference.abs().sum(-1) / query.shape[-1] ** 0.5).exp()


@pytest.mark.parametrize("kernel_type", TYPES[:3])
def test_the_error_of_the_estimate_falls_as_one_by_the_root_of_the_features(kernel_type):
    query, key = 0.5 * noise(9, D_HEAD, seed=1), 0.5 * noise(11, D_HEAD, seed=2)
    expected = kernel(query, key, kernel_type)

    def error(kernel_dim):
        squares = []
        for seed in range(40):
            frequencies = draw_frequencies(kernel_type, kernel_dim, D_HEAD, seed=seed)
            parts = [kernel_features(part, frequencies, kernel_type) for part in (query, key)]
            left, right = (found * peak.exp() for found, peak in parts)
            squares.append((left @ right.mT / expected - 1).square().mean())
        return torch.stack(squares).mean().sqrt()

    assert 2.5 < error(24) / error(24 * 16) < 6
    assert error(24 * 64) < 0.15


def test_frequencies_are_orthogonal_and_of_their_seed_alone():
    state = torch.get_rng_state()
    drawn = draw_frequencies("favor", 10, D_HEAD, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, draw_frequencies("favor", 10, D_HEAD, seed=4))
    assert not torch.equal(drawn, draw_frequencies("favor", 10, D_HEAD, seed=5))
    products = drawn[:D_HEAD] @ drawn[:D_HEAD].mT
    torch.testing.assert_close(products, products.diag().diag(), rtol=0, atol=1e-5)
    mean = draw_frequencies("favor", 60_000, D_HEAD, seed=0).mean(0)
    assert mean.abs().max() < 0.02  # were the bases not uniform, 0.1
    mixer = KernelAttention(16, seed=4)
    assert "frequencies" in mixer.state_dict()
    assert "frequencies" not in dict(mixer.named_parameters())


def test_with_many_features_it_is_softmax_attention():
    attention, x = build(MIXERS, {"kind": "attention", "n_heads": 4}), 0.7 * noise(2, 40, D_MODEL)
    errors = []
    for kernel_dim in (16, 4096):
        mixer = build(MIXERS, {"kind": "kernel_attention", "n_heads": 4, "kernel_dim": kernel_dim})
        mixer.load_state_dict({**attention.state_dict(), "frequencies": mixer.frequencies})
        errors.append((mixer(x) - attention(x)).abs().mean() / attention(x).abs().mean())
    assert errors[1] < 0.02
    assert errors[0] > 8 * errors[1]  # by 256 times the features: 16 on average


@each_type
def test_both_directions(kernel_type):
    mixer, x = KernelAttention(16, n_heads=2, kernel_type=kernel_type, causal=False), noise(1, 9, 16)
    changed = x.clone()
    changed[:, 4] += 1
    assert ((mixer(x) - mixer(changed)).abs().amax((0, 2)) > 1e-6).all()
    assert not mixer.has_step


@each_type
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("time", [1, 33, 100])
def test_operations_are_what_runs(kernel_type, causal, time):
    with torch.device("meta"):
        mixer, x = KernelAttention(16, n_heads=2, kernel_type=kernel_type, causal=causal), torch.empty(1, time, 16)
    assert counted(mixer, x) == mixer.flops(time)
