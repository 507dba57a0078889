"""Attention: windows, shared keys, directions and rotary positions, each against the plain formula."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import MIXERS
from models.mixers.attention import Attention
from models.ops.attention import attend as dispatch
from models.ops.attention import windows
from models.ops.attention.attend import attend, is_blocked, saves_half
from models.ops.attention.rotary import rotate
from models.supernet.from_attention import convert
from search.evaluation.memory_count import peak_bytes
from tests.models.cases import D_MODEL, build, noise


def plain(query, key, value, *, causal, window, sinks=None, n_sink_tokens=0):
    time, group = query.shape[-2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    for i in range(time):
        for j in range(time):
            if (causal and j > i) or (window is not None and abs(i - j) >= window and j >= n_sink_tokens):
                scores[..., i, j] = -torch.inf
    weights = scores.exp()
    return weights @ value / (weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp()[:, None, None]))


@pytest.fixture(params=["a CPU's", "a CPU's in small blocks", "other devices'"])
def each_form(request, monkeypatch):
    """Every form that a window may be computed in: which one runs depends on the device and the sizes."""
    if "small" in request.param:
        monkeypatch.setattr(windows, "N_QUERIES", 3)
        monkeypatch.setattr(dispatch, "saves_half", lambda *_, **__: True)
    monkeypatch.setattr(dispatch, "_is_looped", lambda _, answer="CPU" in request.param: answer)


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("has_sinks", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 8, 9, 16, 40])
@pytest.mark.parametrize("time", [1, 2, 17])
def test_windows_directions_and_sinks(causal, window, time, has_sinks):
    inputs = [noise(2, heads, time, 6, seed=seed, dtype=torch.float64) for seed, heads in enumerate((4, 2, 2))]
    inputs = [part.requires_grad_() for part in (*inputs, *[2 * noise(4, seed=3, dtype=torch.float64)] * has_sinks)]

    def found(form):
        mixed = form(*inputs[:3], causal=causal, window=window, sinks=inputs[3] if has_sinks else None)
        return mixed, *torch.autograd.grad((mixed * noise(2, 4, time, 6, seed=4, dtype=torch.float64)).sum(), inputs)

    torch.testing.assert_close(found(attend), found(plain))


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("has_sinks", [True, False])
@pytest.mark.parametrize("n_sink_tokens", [1, 3, 12, 30])
@pytest.mark.parametrize("window", [1, 2, 5, 8, 16, 40])
@pytest.mark.parametrize("time", [1, 2, 17])
def test_first_tokens_stay_visible_beside_a_window(window, time, n_sink_tokens, has_sinks):
    inputs = [noise(2, heads, time, 6, seed=seed, dtype=torch.float64) for seed, heads in enumerate((4, 2, 2))]
    inputs = [part.requires_grad_() for part in inputs]
    sinks = 2 * noise(4, seed=3, dtype=torch.float64) if has_sinks else None

    def found(form):
        mixed = form(*inputs, causal=True, window=window, sinks=sinks, n_sink_tokens=n_sink_tokens)
        return mixed, *torch.autograd.grad((mixed * noise(2, 4, time, 6, seed=4, dtype=torch.float64)).sum(), inputs)

    torch.testing.assert_close(found(attend), found(plain))


@pytest.mark.parametrize(("time", "window"), [(64, 5), (100, 99), (129, 5), (257, 64), (300, 5), (500, 150)])
@pytest.mark.parametrize("causal", [True, False])
def test_long_windows_give_what_a_mask_gives(time, window, causal):
    inputs = [noise(1, heads, time, 6, seed=seed, dtype=torch.float64) for seed, heads in enumerate((2, 1, 1))]
    distance = torch.arange(time)[:, None] - torch.arange(time)
    seen = (distance.abs() < window) & ((distance >= 0) | (not causal))
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=seen, enable_gqa=True)
    for has_gradients in (True, False):
        with torch.set_grad_enabled(has_gradients):
            torch.testing.assert_close(attend(*inputs, causal=causal, window=window), expected)


def test_blocks_are_for_what_they_save():
    for window in (1, 64, 1000):
        assert saves_half(4096, causal=True, window=window)
        assert not saves_half(64, causal=True, window=window)  # one block
    assert not saves_half(192, causal=True, window=64)
    assert saves_half(256, causal=True, window=64)


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": False}, {"causal": True, "n_sink_tokens": 3}], ids=str)
def test_a_window_takes_memory_that_is_linear_in_time(options):
    mixers = [Attention(8, n_heads=1, window=300, **options) for _ in range(2)]
    short, long = (
        peak_bytes(lambda time=time, mixer=mixer: mixer(torch.ones(1, time, 8)).sum().backward())
        for time, mixer in zip((2048, 8192), mixers, strict=True)
    )
    assert long < 5 * short


def test_sink_tokens_are_held_in_the_cache_and_need_a_window():
    mixer = Attention(16, n_heads=2, window=5, n_sink_tokens=2)
    assert mixer.state_size(6) == 2 * 16 * 6
    assert mixer.state_size(100) == 2 * 16 * 7
    state = mixer.initial_state(1)
    for _ in range(20):
        _, state = mixer.step(noise(1, 16), state)
    assert state[0].shape[2] == 7
    for options in ({}, {"window": 5, "causal": False}):
        with pytest.raises(ValueError, match="n_sink_tokens = 1 stay visible beside a window"):
            Attention(16, n_sink_tokens=1, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"n_kv_heads": 2}, {"window": 9}, {"window": 40}, {"causal": False, "window": 9}, {"window": 9, "n_sink_tokens": 3}],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"sinks": True}, {"output_gate": True, "d_head": 12}], ids=str)
@pytest.mark.parametrize("time", [1, 50, 100])
def test_operations_are_what_torch_counts(options, more, time):
    with torch.device("meta"):
        mixer, x = Attention(32, n_heads=4, **options, **more), torch.empty(1, time, 32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mixer(x)
    assert counter.get_total_flops() == mixer.flops(time)


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


@pytest.mark.parametrize("sinks", [True, False])
def test_what_comes_after_a_window_in_both_directions_does_not_count(sinks):
    mixer, x = Attention(16, n_heads=2, causal=False, window=4, sinks=sinks), noise(1, 40, 16)
    for time in (8, 9, 25):
        torch.testing.assert_close(mixer(x[:, :time])[:, : time - 3], mixer(x)[:, : time - 3], rtol=1e-5, atol=1e-5)
    assert (mixer(x[:, :9])[:, -1] - mixer(x)[:, 8]).abs().max() > 1e-4


def test_norms_and_gate_by_formula():
    mixer, x = Attention(16, n_heads=2, d_head=6, qk_norm=True, output_gate=True, rope_fraction=1 / 3), noise(2, 9, 16)
    for index, norm in enumerate((mixer.query_norm, mixer.key_norm)):
        torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(index))

    def heads(linear, norm=None):
        part = linear(x).unflatten(-1, (2, 6)).transpose(1, 2)
        if norm is None:
            return part
        part = part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        return torch.cat((rotate(part[..., :2], torch.arange(9), 10000.0), part[..., 2:]), -1)

    query, key, value = heads(mixer.query, mixer.query_norm), heads(mixer.key, mixer.key_norm), heads(mixer.value)
    mixed = plain(query, key, value, causal=True, window=None).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(mixer(x), mixer.output(mixed * torch.sigmoid(mixer.gate(x))))


def test_a_sink_takes_all():
    mixer, x = Attention(16, n_heads=2, sinks=True), noise(1, 9, 16)
    torch.nn.init.constant_(mixer.sinks, -1e4)
    without = Attention(16, n_heads=2)
    without.load_state_dict({name: value for name, value in mixer.state_dict().items() if name != "sinks"})
    torch.testing.assert_close(mixer(x), without(x))
    torch.nn.init.constant_(mixer.sinks, 1e4)
    assert mixer(x).abs().max() < 1e-6


@pytest.mark.parametrize("kernel", ["flash-attn", "flex"])
def test_a_kernel_by_name_has_no_sinks(kernel):
    with torch.device("meta"):  # where it need not be installed
        assert Attention(16, kernel=kernel).kernel == kernel
        with pytest.raises(ValueError, match=f"kernel = {kernel} has no sinks"):
            Attention(16, sinks=True, kernel=kernel)


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


def test_a_converted_attention_keeps_gate_norms_and_sinks_and_another_mixer_its_own_gate():
    options = {"kind": "attention", "n_heads": 4, "qk_norm": True, "output_gate": True, "sinks": True}
    source, target, x = build(MIXERS, options), build(MIXERS, {**options, "window": 20}, seed=1), noise(2, 17, D_MODEL)
    for index, name in enumerate(("sinks", "query_norm.weight", "key_norm.weight")):
        torch.nn.init.normal_(source.get_parameter(name), generator=torch.Generator().manual_seed(index))
    done = convert(source, target)
    torch.testing.assert_close(target(x), source(x))
    assert set(done.copied) == dict(source.named_parameters()).keys()
    other = build(MIXERS, {"kind": "gated_delta_net", "n_heads": 4})
    gate = other.gate.weight.clone()
    done = convert(source, other)
    assert torch.equal(other.gate.weight, gate)
    assert "gate.weight" in done.kept
    assert done.dropped == ("gate.weight", "key_norm.weight", "query_norm.weight", "sinks")


@pytest.mark.parametrize("n_features", [8, 1024])
def test_a_converted_kernel_attention_is_as_good_as_its_features(n_features):
    source, x = build(MIXERS, {"kind": "attention", "n_heads": 4}), 0.7 * noise(2, 33, D_MODEL)
    target = build(MIXERS, {"kind": "kernel_attention", "n_heads": 4, "kernel_dim": n_features}, seed=1)
    assert convert(source, target).copied == tuple(dict(source.named_parameters()))
    error = (target(x) - source(x)).abs().mean() / source(x).abs().mean()
    assert (error < 0.05) == (n_features == 1024)
