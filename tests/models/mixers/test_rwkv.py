"""The recurrences of RWKV-6 and RWKV-7 against loops over positions, token shift, and RWKV's channel mixer."""

import pytest
import torch
import torch.nn.functional as F

from models import CHANNEL_MIXERS, MIXERS
from models.channel_mixers.rwkv import RWKV
from models.mixers.rwkv6 import RWKV6
from models.mixers.rwkv7 import FASTEST, RWKV7
from models.ops.convolutions.token_shift import LowRank, shift, toward
from models.ops.recurrences.gated_linear_attention import LOWEST_LOG_DECAY
from models.ops.recurrences.rwkv6_recurrence import rwkv6_recurrence, rwkv6_recurrence_flops
from models.ops.recurrences.rwkv7_recurrence import rwkv7_recurrence, rwkv7_recurrence_flops
from tests.models.cases import D_MODEL, build, gradients, noise
from tests.models.flops import counted
from tests.models.ops.test_ops import D_KEY, D_VALUE, assert_same, outer

each_length = pytest.mark.parametrize("time", [1, 2, 17, 33, 65, 100])
each_count = pytest.mark.parametrize("n_heads", [1, 3])
CASES = {
    "rwkv6 heads": {"kind": "rwkv6", "n_heads": 4, "shift_rank": 3, "decay_rank": 1},
    "rwkv7 heads": {"kind": "rwkv7", "n_heads": 4, "decay_rank": 1, "rate_rank": 3, "gate_rank": 5},
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)
REFUSED = [
    (MIXERS, {"kind": "rwkv6", "n_heads": 3}, "n_heads = 3 must divide d_model = 32"),
    (MIXERS, {"kind": "rwkv6", "shift_rank": 0}, "shift_rank = 0"),
    (MIXERS, {"kind": "rwkv6", "decay_rank": 0}, "decay_rank = 0"),
    (MIXERS, {"kind": "rwkv7", "n_heads": 3}, "n_heads = 3 must divide d_model = 32"),
    (MIXERS, {"kind": "rwkv7", "decay_rank": 0}, "decay_rank = 0"),
    (MIXERS, {"kind": "rwkv7", "rate_rank": 0}, "rate_rank = 0"),
    (MIXERS, {"kind": "rwkv7", "gate_rank": 0}, "gate_rank = 0"),
    (CHANNEL_MIXERS, {"kind": "rwkv", "d_ff": 0}, "d_ff = 0"),
]


def inputs(time, n_heads):
    """Query, key and value."""
    sizes = enumerate((D_KEY, D_KEY, D_VALUE))
    return [noise(2, n_heads, time, size, seed=seed, dtype=torch.float64) for seed, size in sizes]


def keys_like(key, seed):
    return noise(*key.shape, seed=seed, dtype=torch.float64)


def rwkv6_loop(query, key, value, log_decay, bonus):
    state, outputs = torch.zeros_like(outer(key[..., 0, :], value[..., 0, :])), []
    for t in range(query.shape[-2]):
        added = outer(key[..., t, :], value[..., t, :])
        outputs.append((query[..., t, None, :] @ (state + bonus[..., None] * added))[..., 0, :])
        state = log_decay[..., t, :, None].exp() * state + added
    return torch.stack(outputs, -2) + 0 * state.sum()  # the last decay is an input that no output depends on


def rwkv7_loop(query, key, value, log_decay, *removal_and_rate):
    removal, rate = removal_and_rate
    state, outputs = torch.zeros_like(outer(key[..., 0, :], value[..., 0, :])), []
    for t in range(query.shape[-2]):
        transition = torch.diag_embed(log_decay[..., t, :].exp()) - outer((rate * removal)[..., t, :], removal[..., t, :])
        state = transition @ state + outer(key[..., t, :], value[..., t, :])
        outputs.append((query[..., t, None, :] @ state)[..., 0, :])
    return torch.stack(outputs, -2)


def rwkv7_inputs(time, n_heads):
    query, key, value = inputs(time, n_heads)
    log_decay, rate = -FASTEST * (3 * keys_like(key, 3)).sigmoid(), keys_like(key, 5).sigmoid()
    return [query, key, value, log_decay, F.normalize(keys_like(key, 4), dim=-1), rate]


@each_length
@each_count
def test_rwkv6_recurrence(time, n_heads):
    query, key, value = inputs(time, n_heads)
    log_decay = -keys_like(key, 3).exp().clamp(max=-LOWEST_LOG_DECAY)
    assert_same(rwkv6_recurrence, rwkv6_loop, [query, key, value, log_decay, noise(n_heads, D_KEY, dtype=torch.float64)])


@each_length
@each_count
def test_rwkv7_recurrence(time, n_heads):
    assert_same(rwkv7_recurrence, rwkv7_loop, rwkv7_inputs(time, n_heads))


@pytest.mark.parametrize("log_decay", [0.0, LOWEST_LOG_DECAY])
def test_rwkv6_recurrence_at_its_limits_in_float32(log_decay):
    query, key, value = inputs(100, 2)
    exact = [1e4 * query, 1e4 * key, 1e4 * value, torch.full_like(key, log_decay), noise(2, D_KEY, dtype=torch.float64)]
    short = [part.float().requires_grad_() for part in exact]
    expected, found = rwkv6_loop(*exact), rwkv6_recurrence(*short)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), short))


@pytest.mark.parametrize("log_decay", [0.0, -1.0])
def test_rwkv7_recurrence_at_its_limits_in_float32(log_decay):
    query, key, value, _, removal, rate = rwkv7_inputs(100, 2)
    exact = [1e4 * query, 1e4 * key, 1e4 * value, torch.full_like(key, log_decay), removal, torch.ones_like(rate)]
    short = [part.float().requires_grad_() for part in exact]
    expected, found = rwkv7_loop(*exact), rwkv7_recurrence(*short)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), short))


def test_recurrences_stay_float32_under_autocast():
    query, key, value, log_decay, removal, rate = (part.bfloat16() for part in rwkv7_inputs(65, 2))
    for rule, parts in (
        (rwkv6_recurrence, (query, key, value, log_decay, removal[0, :, 0])),
        (rwkv7_recurrence, (query, key, value, log_decay, removal, rate)),
    ):
        expected = rule(*(part.float() for part in parts))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(rule(*parts), expected)


def drawn(kind):
    """A mixer of 2 heads whose every parameter is random, in float64."""
    mixer = build(MIXERS, {"kind": kind, "n_heads": 2}, d_model=8).double()
    with torch.no_grad():
        for seed, parameter in enumerate(mixer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed, dtype=torch.float64) / 2)
    return mixer


def positions(x):
    """Each position [d_model] of a sequence [time, d_model], with the one before it."""
    return zip(x, torch.cat((torch.zeros_like(x[:1]), x[:-1])), strict=True)


def normalised(mixer, heads):
    """[n_heads, d_head] -> [d_model]: each head by itself, then a weight and a bias for every channel."""
    centred = heads - heads.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 64e-5).sqrt()
    return scaled.flatten() * mixer.norm.weight + mixer.norm.bias


def test_rwkv6_by_formula():
    mixer, x = drawn("rwkv6"), noise(9, 8, dtype=torch.float64)
    state, expected = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for here, before in positions(x):
        between = here + (before - here) * mixer.shift.mu
        read = {}
        for name, low in mixer.shift.shares.items():
            share = low.up.bias + low.up.weight @ (low.down.weight @ between).tanh()
            read[name] = here + (before - here) * share
        r, k, v = ((getattr(mixer, name).weight @ read[name]).reshape(2, 4) for name in ("query", "key", "value"))
        d = mixer.decay.up.bias + mixer.decay.up.weight @ (mixer.decay.down.weight @ read["decay"]).tanh()
        w = torch.exp(-torch.exp(d).clamp(max=-LOWEST_LOG_DECAY)).reshape(2, 4)
        added = torch.einsum("hk,hv->hkv", k, v)
        y = torch.einsum("hk,hkv->hv", r, state + mixer.bonus[..., None] * added)
        state = w[..., None] * state + added
        gate = mixer.gate.weight @ read["gate"]
        expected.append(mixer.output.weight @ (normalised(mixer, y) * gate * gate.sigmoid()))
    torch.testing.assert_close(mixer(x[None])[0], torch.stack(expected))


def test_rwkv7_by_formula():
    mixer, x = drawn("rwkv7"), noise(9, 8, dtype=torch.float64)
    state, expected = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for here, before in positions(x):
        xr, xw, xk, xv, xa, xg = (here + (before - here) * share for share in mixer.shares)
        r, k, v = (linear.weight @ z for linear, z in ((mixer.query, xr), (mixer.key, xk), (mixer.value, xv)))
        d = mixer.decay.up.bias + mixer.decay.up.weight @ (mixer.decay.down.weight @ xw).tanh()
        w = torch.exp(-torch.exp(-F.softplus(-d) - 0.5))
        a = (mixer.rate.up.bias + mixer.rate.up.weight @ (mixer.rate.down.weight @ xa)).sigmoid()
        g = mixer.gate.up.weight @ (mixer.gate.down.weight @ xg).sigmoid()
        removal = (k * mixer.k_k).reshape(2, 4)
        removal = removal / removal.norm(dim=-1, keepdim=True)
        k = k * (1 + (a - 1) * mixer.k_a)
        r, k, v, w, a = (part.reshape(2, 4) for part in (r, k, v, w, a))
        # The paper's state has values first.
        state = state @ (torch.diag_embed(w) - outer(removal, a * removal)) + outer(v, k)
        y = normalised(mixer, (state @ r[..., None])[..., 0])
        y = y + ((r * mixer.r_k * k).sum(-1, keepdim=True) * v).flatten()
        expected.append(mixer.output.weight @ (y * g))
    torch.testing.assert_close(mixer(x[None])[0], torch.stack(expected))


@pytest.mark.parametrize("time", [1, 32, 65])
def test_operations_are_what_runs(time):
    query, key, value, log_decay, removal, rate = (part[:1] for part in rwkv7_inputs(time, 1))
    found = counted(rwkv6_recurrence, query, key, value, log_decay, key[0, :, 0])
    assert found == rwkv6_recurrence_flops(time, D_KEY, D_VALUE)
    found = counted(rwkv7_recurrence, query, key, value, log_decay, removal, rate)
    assert found == rwkv7_recurrence_flops(time, D_KEY, D_VALUE)


@each_case
def test_operations_of_the_layers(options):
    mixer = build(MIXERS, options)
    assert counted(mixer, noise(1, 65, D_MODEL)) == mixer.flops(65)


@pytest.mark.parametrize(("registry", "options", "message"), REFUSED, ids=[f"{part}" for _, part, _ in REFUSED])
def test_refused(registry, options, message):
    with pytest.raises(ValueError, match=message):
        build(registry, options)


@pytest.mark.parametrize("time", [1, 2, 5])
def test_token_shift(time):
    x = noise(2, 3, time, 4)
    expected = torch.zeros_like(x)
    for t in range(1, time):
        expected[..., t, :] = x[..., t - 1, :]
    assert torch.equal(shift(x), expected)
    share = torch.tensor([0.0, 1.0, 0.5, 2.0])
    torch.testing.assert_close(toward(shift(x), x, share), (1 - share) * x + share * expected)


def test_what_starts_as_defined_is_kept():
    """Also where a model zeroes the biases of its linears."""
    for mixer in (RWKV6(D_MODEL), RWKV7(D_MODEL)):
        low_rank = [part for part in mixer.modules() if isinstance(part, LowRank) and part.up.bias is not None]
        assert low_rank
        assert all(part.up.bias.keep_init for part in low_rank)
    decay = RWKV6(D_MODEL)._read(torch.zeros(1, D_MODEL), torch.zeros(1, D_MODEL))[-1]
    torch.testing.assert_close((-decay[0, [0, -1]]).log(), torch.tensor([-6.0, -1.0]))


@pytest.mark.parametrize("n_positions", [2, 1024, 100_000])
def test_remembers_as_long_as_asked(n_positions):
    nothing = torch.zeros(1, D_MODEL)
    six, seven = RWKV6(D_MODEL), RWKV7(D_MODEL)
    assert six.set_memory_length(n_positions) == seven.set_memory_length(n_positions) == ("decay.up.bias",)
    found = torch.stack((six._read(nothing, nothing)[-1], seven._read(nothing, nothing)[0][3][0]))
    torch.testing.assert_close(found, torch.full((2, 1, D_MODEL), -1 / n_positions), rtol=1e-3, atol=0)


def test_rwkv7_cannot_forget_within_one_position():
    with pytest.raises(ValueError, match="n_positions = 1 must be at least 2"):
        RWKV7(D_MODEL).set_memory_length(1)


def test_a_strong_decay_stops_at_the_lowest():
    mixer = RWKV6(16)
    torch.nn.init.constant_(mixer.decay.up.bias, 1e6)
    x = noise(2, 40, 16)
    torch.testing.assert_close(mixer._read(x, shift(x))[-1], torch.full_like(x, LOWEST_LOG_DECAY))
    assert all(gradient.isfinite().all() for gradient in gradients(mixer, x).values())


def test_channel_mixer_has_the_published_size():
    mixer = RWKV(128)
    assert mixer.d_ff == 512
    assert sum(parameter.numel() for parameter in mixer.parameters()) == 147_712


def test_channel_mixer_by_formula_and_step_by_step():
    mixer, x = RWKV(D_MODEL, d_ff=24), noise(2, 9, D_MODEL)
    state, stepped, expected = mixer.initial_state(2), [], []
    for t in range(9):
        before = x[:, t - 1] if t else torch.zeros(2, D_MODEL)
        for_up, for_gate = (share * before + (1 - share) * x[:, t] for share in (mixer.shift_up, mixer.shift_gate))
        hidden = (for_up @ mixer.up.weight.mT).clamp(min=0) ** 2
        expected.append((for_gate @ mixer.gate.weight.mT).sigmoid() * (hidden @ mixer.down.weight.mT))
        output, state = mixer.step(x[:, t], state)
        stepped.append(output)
    torch.testing.assert_close(mixer(x), torch.stack(expected, 1))
    torch.testing.assert_close(mixer(x), torch.stack(stepped, 1))


def test_channel_mixer_looks_back_by_one_position_only():
    mixer, x = RWKV(D_MODEL), noise(2, 9, D_MODEL)
    changed = x.clone()
    changed[:, 4] += 1
    differs = (mixer(x) - mixer(changed)).abs().amax((0, 2)) > 1e-6
    assert differs.tolist() == [t in (4, 5) for t in range(9)]
