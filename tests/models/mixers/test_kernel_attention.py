"""Kernel attention: the linear form against the quadratic one, and what the random features estimate."""

import pytest
import torch
import torch.nn.functional as F

from models import MIXERS
from models.mixers.kernel_attention import KernelAttention
from models.ops.attention.kernel_attention import kernel_attention
from models.ops.attention.kernel_features import draw_frequencies, kernel_features, least_sum, scaled_frequencies
from tests.models.cases import D_MODEL, build, noise
from tests.models.flops import counted

TYPES = ("favor", "rff_gaussian", "rff_laplacian", "elu")
D_HEAD = 6

each_type = pytest.mark.parametrize("kernel_type", TYPES)


def features(x, frequencies, kernel_type):
    """As in the papers, with nothing taken out."""
    if kernel_type == "elu":
        return torch.where(x > 0, x + 1, x.exp())
    n = frequencies.shape[-2]
    if kernel_type == "favor":
        x = x / x.shape[-1] ** 0.25
        return ((x @ frequencies.mT) - (x**2).sum(-1, keepdim=True) / 2).exp() / n**0.5
    x = x / x.norm(dim=-1, keepdim=True)
    angles = (x @ frequencies.mT) / (x.shape[-1] ** 0.5 if kernel_type == "rff_laplacian" else 1)
    return torch.cat((angles.cos(), angles.sin()), -1) / n**0.5


def quadratic(query, key, value, frequencies, *, kernel_type, causal, log_scale=None):
    if log_scale is not None:
        frequencies = frequencies * log_scale.exp()[:, None, None] ** (0.5 if kernel_type == "rff_gaussian" else 1)
    kernels = features(query, frequencies, kernel_type) @ features(key, frequencies, kernel_type).mT
    seen = torch.ones_like(kernels).tril() if causal else torch.ones_like(kernels)
    n_seen = seen.sum(-1, keepdim=True)
    least = 1e-30
    if log_scale is not None:
        farthest = (-2 * log_scale.exp()).exp()[:, None, None]
        least = torch.maximum(n_seen * farthest, (n_seen / (2 * frequencies.shape[-2])) ** 0.5)
    return (kernels * seen) @ value / torch.maximum((kernels * seen).sum(-1, keepdim=True), n_seen * 0 + least)


def linear(query, key, value, frequencies, *, kernel_type, causal, log_scale=None):
    if log_scale is not None:
        frequencies = scaled_frequencies(frequencies, log_scale, kernel_type)
    (query, _), (key, peak) = (kernel_features(part, frequencies, kernel_type) for part in (query, key))
    time = query.shape[-2]
    least = least_sum(torch.arange(1 if causal else time, time + 1)[:, None], log_scale, query.shape[-1])
    return kernel_attention(query, key, peak, value, causal=causal, least=least)


@each_type
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("time", [1, 2, 17, 33, 65, 100])
def test_linear_is_quadratic(kernel_type, causal, time):
    inputs = [noise(2, 2, time, size, seed=seed, dtype=torch.float64).requires_grad_() for seed, size in enumerate((6, 6, 4))]
    frequencies = draw_frequencies(kernel_type, D_HEAD if kernel_type == "elu" else 10, D_HEAD, seed=1)
    frequencies = None if frequencies is None else frequencies.double()
    options = {"kernel_type": kernel_type, "causal": causal}
    if kernel_type.startswith("rff"):
        options["log_scale"] = torch.tensor([-1.0, 1.0], dtype=torch.float64, requires_grad=True)
        inputs.append(options["log_scale"])
    outputs = [form(*inputs[:3], frequencies, **options) for form in (linear, quadratic)]
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


@pytest.mark.parametrize(("kernel_type", "share"), {**dict.fromkeys(TYPES[:3], 5), "elu": 1.3}.items())
def test_a_key_like_the_query_wins(kernel_type, share):
    """Of 64 random ones, on average over the features' seeds: attention can be paid to something."""
    key = noise(1, 1, 64, 16)
    weights = []
    for seed in range(40):
        mixer = KernelAttention(16, kernel_type=kernel_type, kernel_dim=None if kernel_type == "elu" else 128, seed=seed)
        parts = (key, key, torch.eye(64)[None, None], mixer.frequencies)
        weights.append(linear(*parts, kernel_type=kernel_type, causal=False, log_scale=mixer.log_scale)[0, 0].detach())
    assert torch.stack(weights).mean(0).diag().mean() > share / 64


@pytest.mark.parametrize("kernel_type", TYPES[1:3])
def test_what_cancels_is_not_divided_by(kernel_type):
    """Few waves tell random unit vectors apart by chance only, and what they add up to may be nothing: no output explodes."""
    mixer = KernelAttention(16, kernel_type=kernel_type)
    query, key, value = noise(3, 8, 1, 256, 16)
    log_scale = mixer.log_scale + 1  # as training may sharpen it
    found = linear(query, key, value, mixer.frequencies, kernel_type=kernel_type, causal=True, log_scale=log_scale)
    assert found.abs().max() < 10
    assert found.square().mean() < 1


def test_scales_are_learned_and_start_as_they_are():
    mixer = build(MIXERS, {"kind": "kernel_attention", "n_heads": 4, "kernel_type": "rff_gaussian"})
    assert mixer.log_scale.keep_init
    assert torch.equal(mixer.log_scale.exp(), torch.full((4,), 2.0))
    assert build(MIXERS, {"kind": "kernel_attention"}).log_scale is None


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


@pytest.mark.timeout(5)
def test_where_shapes_alone_are_asked_for_no_numbers_are_drawn():
    """A spec is checked so: ten million features would take half a minute, and gigabytes."""
    with torch.device("meta"):
        shapes = [draw_frequencies(kind, 10**9, D_HEAD, seed=0).shape for kind in ("favor", "rff_gaussian", "rff_laplacian")]
    assert shapes == [(10**9, D_HEAD), (5 * 10**8, D_HEAD), (5 * 10**8, D_HEAD)]


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
