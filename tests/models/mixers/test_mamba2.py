"""Mamba-2: the chunked dual form against the recurrence, and what its options mean."""

import pytest
import torch
import torch.nn.functional as F

from models.mixers.mamba2 import GroupedRMSNorm, Mamba2
from models.ops.recurrences.state_space_duality import state_space_duality
from tests.models.cases import noise

N_HEADS, D_STATE, D_HEAD = 4, 3, 5


def inputs(time, n_groups):
    x = noise(2, N_HEADS, time, D_HEAD, seed=0, dtype=torch.float64)
    steps = F.softplus(2 * noise(2, N_HEADS, time, seed=1, dtype=torch.float64))
    speed = -noise(N_HEADS, seed=2, dtype=torch.float64).exp()
    write, read = (noise(2, n_groups, time, D_STATE, seed=seed, dtype=torch.float64) for seed in (3, 4))
    return [x, steps, speed, write, read]


def recurrence(x, steps, speed, write, read):
    share = N_HEADS // write.shape[1]
    outputs = torch.zeros_like(x)
    for head in range(N_HEADS):
        state = x.new_zeros(x.shape[0], D_STATE, D_HEAD)
        rows = []
        for t in range(x.shape[2]):
            added = write[:, head // share, t, :, None] * (steps[:, head, t, None] * x[:, head, t])[:, None]
            state = (steps[:, head, t] * speed[head]).exp()[:, None, None] * state + added
            rows.append((read[:, head // share, t, None] @ state)[:, 0])
        outputs = outputs.index_add(1, torch.tensor([head]), torch.stack(rows, 1)[:, None])
    return outputs


@pytest.mark.parametrize("n_groups", [1, 2, 4])
@pytest.mark.parametrize("time", [1, 2, 17, 31, 32, 33, 65, 100])
def test_the_dual_form_is_the_recurrence(time, n_groups):
    parts = [part.requires_grad_() for part in inputs(time, n_groups)]
    outputs = [form(*parts) for form in (state_space_duality, recurrence)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    found = [torch.autograd.grad((y * noise(*y.shape, seed=9, dtype=y.dtype)).sum(), parts) for y in outputs]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_it_forgets_all_and_nothing(scale):
    x, steps, *others = inputs(65, 2)
    parts = [x, scale * steps, *others]
    exact = recurrence(*parts)
    found = state_space_duality(*(part.float() for part in parts))
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4 * max(scale, 1))


def test_it_stays_float32_under_autocast():
    parts = [part.bfloat16() for part in inputs(65, 2)]
    expected = state_space_duality(*(part.float() for part in parts))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(state_space_duality(*parts), expected)


def test_the_norm_is_over_a_group():
    norm, x = GroupedRMSNorm(6, 2, eps=0.1), noise(4, 6)
    expected = [share / (share.square().mean(-1, keepdim=True) + 0.1).sqrt() for share in x.split(3, -1)]
    torch.testing.assert_close(norm(x), torch.cat(expected, -1))


def test_how_long_it_remembers_is_what_was_asked_for():
    mixer = Mamba2(32, d_head=16, d_state=8)
    for n_positions in (16, 1024):
        assert mixer.set_memory_length(n_positions) == ("A_log",)
        log_decay = -mixer.A_log.exp() * mixer._steps(torch.zeros(32))
        torch.testing.assert_close(log_decay, torch.full((4,), -1 / n_positions), rtol=1e-4, atol=0)


def test_sizes():
    assert Mamba2(128, d_state=4, d_head=16).state_size(1000) == 1024
    assert Mamba2(64, n_groups=2).write.weight.shape == (256, 64)
    for options, text in (
        ({"d_head": 24}, r"d_head = 24 must divide expand \* d_model = 64"),
        ({"d_head": 16, "n_groups": 3}, "n_groups = 3 must divide n_heads = .* = 4"),
        ({"d_state": 0}, "d_state = 0 must be at least 1"),
        ({"d_conv": 0}, "d_conv = 0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            Mamba2(32, **options)
