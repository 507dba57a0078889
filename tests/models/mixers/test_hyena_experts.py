"""The mixture of Hyenas: expert by expert, and what its router lets through."""

import pytest
import torch

from models.mixers.hyena_experts import HyenaExperts
from tests.models.cases import gradients, noise


def plain(mixer, x):
    """Position by position: each reads its own chosen experts, whole, and weighs what they say."""
    time = x.shape[1]
    taps = mixer.filter(time)
    padded = torch.nn.functional.pad(mixer.input(x), (0, 0, mixer.convolution.weight.shape[1] - 1, 0))
    short = torch.stack(
        [
            (padded[:, t : t + mixer.convolution.weight.shape[1]] * mixer.convolution.weight.mT).sum(1) + mixer.convolution.bias
            for t in range(time)
        ],
        1,
    )
    outer, inner, value = short.chunk(3, -1)
    rows = []
    for t in range(time):
        long = sum(taps[:, t - s] * inner[:, s] * value[:, s] for s in range(t + 1))
        experts = (outer[:, t] * long).unflatten(-1, (mixer.n_experts, mixer.d_expert))
        best = mixer.router(x[:, t]).topk(mixer.n_active)
        chosen = experts.gather(1, best.indices[..., None].expand(-1, -1, mixer.d_expert))
        rows.append(mixer.output((best.values.softmax(-1)[..., None] * chosen).sum(1)))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("time", [1, 2, 17, 33, 65, 100])
def test_it_is_the_chosen_experts_weighed(time):
    mixer = HyenaExperts(6, 100, n_experts=4, n_active=2, d_expert=3, filter_order=5).double()
    x = noise(2, time, 6, dtype=torch.float64).requires_grad_()
    inputs = [x, *mixer.parameters()]
    outputs = mixer(x), plain(mixer, x)
    torch.testing.assert_close(*outputs)
    weighting = noise(*x.shape, seed=2, dtype=torch.float64)
    found = [torch.autograd.grad((y * weighting).sum(), inputs) for y in outputs]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


def test_an_idle_expert_gets_exactly_no_gradient():
    mixer, x = HyenaExperts(6, 8, n_experts=4, n_active=2, d_expert=3, filter_order=5), noise(1, 8, 6)
    torch.nn.init.constant_(mixer.router.bias, 0)
    mixer.router.bias.data[2] = -100
    found = gradients(mixer, x)
    by_expert = found["input.weight"].unflatten(0, (3, 4, 3)).abs().sum((0, 2, 3))
    assert by_expert[2] == 0
    assert (by_expert[[0, 1, 3]] > 0).all()
    assert found["router.bias"][2] == 0


def test_the_reference_has_as_many_parameters():
    mixer = HyenaExperts(128, 128)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == 57_464
    assert mixer.state_size(1000) == 2048


def test_it_knows_how_long_its_filters_are():
    with pytest.raises(ValueError, match=r"9 positions.*max_length = 8"):
        HyenaExperts(6, 8)(noise(1, 9, 6))
