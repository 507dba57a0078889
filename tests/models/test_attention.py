"""Attention: windows, shared keys, directions and rotary positions, each against the plain formula."""

import pytest
import torch

from models.mixers.attention import Attention
from models.ops.attend import attend, is_blocked
from models.ops.rotary import rotate
from tests.models.cases import noise


def plain(query, key, value, *, causal, window):
    time, group = query.shape[-2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    for i in range(time):
        for j in range(time):
            if (causal and j > i) or (window is not None and abs(i - j) >= window):
                scores[..., i, j] = -torch.inf
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 8, 9, 16, 40])
@pytest.mark.parametrize("time", [1, 2, 17])
def test_windows_and_directions(causal, window, time):
    query, key, value = (noise(2, heads, time, 6, seed=seed, dtype=torch.float64) for seed, heads in enumerate((4, 2, 2)))
    mixed = attend(query, key, value, causal=causal, window=window)
    torch.testing.assert_close(mixed, plain(query, key, value, causal=causal, window=window))


def test_a_narrow_window_costs_time_times_window():
    assert is_blocked(1024, causal=True, window=64)
    narrow, full = Attention(64, n_heads=4, window=64), Attention(64, n_heads=4)
    assert narrow.flops(4096) == 4 * narrow.flops(1024)
    assert full.flops(4096) > 4 * full.flops(1024)
    assert narrow.state_size(4096) == 2 * 64 * 64
    assert full.state_size(4096) == 2 * 64 * 4096


def test_both_directions():
    mixer, x = Attention(16, n_heads=2, causal=False, window=3), noise(1, 9, 16)
    changed = x.clone()
    changed[:, 4] += 1
    moved = (mixer(x) - mixer(changed)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [2 <= place <= 6 for place in range(9)]
    assert not mixer.has_step


def test_shared_keys_shrink_the_cache():
    assert Attention(32, n_heads=4, n_kv_heads=1).state_size(10) == 2 * 8 * 10


def test_rotation_is_relative():
    query, key = noise(1, 8), noise(1, 8, seed=2)

    def score(i, j, base=10000.0):
        return (rotate(query, torch.tensor([i]), base) * rotate(key, torch.tensor([j]), base)).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), rtol=1e-4, atol=1e-4)
    assert (score(7, 3) - score(7, 3, base=100.0)).abs() > 1e-4


def test_rotation_turns_halves_as_complex_numbers():
    x, positions = noise(5, 6, dtype=torch.float64), torch.arange(5)
    angles = positions[:, None] * 100.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    turned = torch.complex(x[:, :3], x[:, 3:]) * torch.exp(1j * angles)
    torch.testing.assert_close(rotate(x, positions, 100.0), torch.cat((turned.real, turned.imag), -1))


def test_rotation_counts_far_in_bfloat16():
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    far = rotate(x, torch.tensor([1000, 1001]), 10000.0)
    assert not torch.equal(far[0], far[1])


def test_positions_matter_only_with_rotation():
    x = noise(1, 9, 16)
    shuffled = x[:, [3, 1, 0, 2, 5, 4, 6, 7, 8]]
    with_positions, without = Attention(16), Attention(16, rope_base=None)
    torch.testing.assert_close(without(x)[:, -1], without(shuffled)[:, -1])
    assert (with_positions(x)[:, -1] - with_positions(shuffled)[:, -1]).abs().max() > 1e-4


def test_the_cache_keeps_the_window():
    mixer, x = Attention(16, n_heads=2, window=3), noise(1, 9, 16)
    state = mixer.initial_state(1)
    for position in x.unbind(1):
        _, state = mixer.step(position, state)
    assert state[0].shape == (1, 2, 3, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_is_of_the_precision_that_is_computed_in(dtype):
    mixer = Attention(16, n_heads=2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        state = mixer.initial_state(1)
        for _ in range(2):
            _, state = mixer.step(torch.randn(1, 16), state)
    assert {tensor.dtype for tensor in state[:2]} == {dtype}
