"""The delta rules and retention against loops over positions, and what DeltaNet, KDA and retention do with their options."""

import pytest
import torch
import torch.nn.functional as F

from models import MIXERS
from models.mixers.kimi_delta_attention import KimiDeltaAttention
from models.mixers.retention import Retention
from models.ops.convolutions.short_convolution import ShortConvolution
from models.ops.recurrences.delta_rule import delta_step, gated_delta_rule
from models.ops.recurrences.gated_linear_attention import LOWEST_LOG_DECAY
from models.ops.recurrences.kimi_delta_rule import kimi_delta_rule, kimi_delta_rule_flops
from models.ops.recurrences.retention import retention, retention_flops
from models.ops.recurrences.ungated_delta_rule import delta_rule, delta_rule_flops
from tests.models.cases import D_MODEL, build, noise
from tests.models.flops import counted
from tests.models.ops.test_ops import D_KEY, D_VALUE, assert_same, outer, recurrence

each_length = pytest.mark.parametrize("time", [1, 2, 17, 33, 65, 100])
each_count = pytest.mark.parametrize("n_heads", [1, 3])

CASES = {
    "delta net heads": {"kind": "delta_net", "n_heads": 4, "expand_v": 2.0},
    "delta net no convolution": {"kind": "delta_net", "n_heads": 2, "d_conv": 0},
    "kda heads": {"kind": "kimi_delta_attention", "n_heads": 4, "expand_v": 2.0, "gate_rank": 3},
    "kda no convolution": {"kind": "kimi_delta_attention", "n_heads": 2, "d_conv": 0},
    "retention heads": {"kind": "retention", "n_heads": 4, "expand_v": 2.0},
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)

COSTS = {delta_rule: delta_rule_flops, kimi_delta_rule: kimi_delta_rule_flops, retention: retention_flops}

REFUSED = [
    ({"kind": "delta_net", "n_heads": 3}, "n_heads = 3 must divide d_model = 32"),
    ({"kind": "delta_net", "expand_v": 0.0}, "expand_v = 0.0"),
    ({"kind": "delta_net", "d_conv": -1}, "d_conv = -1"),
    ({"kind": "kimi_delta_attention", "n_heads": 3}, "n_heads = 3 must divide d_model = 32"),
    ({"kind": "kimi_delta_attention", "gate_rank": 0}, "gate_rank = 0 must be at least 1"),
    ({"kind": "kimi_delta_attention", "d_conv": -1}, "d_conv = -1"),
    ({"kind": "retention", "n_heads": 32}, "n_heads = 32: .* even head size, but d_model / n_heads = 1"),
    ({"kind": "retention", "expand_v": 0.3}, "expand_v = 0.3"),
]


def unit_inputs(time, n_heads):
    """Query, unit key, value and rate."""
    query, key, value, rate = (
        noise(2, n_heads, time, size, seed=seed, dtype=torch.float64) for seed, size in enumerate((D_KEY, D_KEY, D_VALUE, 1))
    )
    return [query, F.normalize(key, dim=-1), value, rate[..., 0].sigmoid()]


def kimi_recurrence(query, key, value, rate, log_decay):
    def update(t, state):
        state = log_decay[..., t, :, None].exp() * state
        missing = value[..., t, :] - (key[..., t, None, :] @ state)[..., 0, :]
        return state + outer(key[..., t, :], rate[..., t, None] * missing)

    return recurrence(query, update)


def delta_recurrence(query, key, value, rate):
    return kimi_recurrence(query, key, value, rate, torch.zeros_like(key))


def retention_recurrence(query, key, value, log_decay):
    return recurrence(query, lambda t, state: log_decay[:, None, None].exp() * state + outer(key[..., t, :], value[..., t, :]))


@each_length
@each_count
def test_delta_rule(time, n_heads):
    assert_same(delta_rule, delta_recurrence, unit_inputs(time, n_heads))


@each_length
@each_count
def test_kimi_delta_rule(time, n_heads):
    log_decay = 3 * noise(2, n_heads, time, D_KEY, seed=5, dtype=torch.float64)
    log_decay = F.logsigmoid(log_decay).clamp(min=LOWEST_LOG_DECAY)
    assert_same(kimi_delta_rule, kimi_recurrence, [*unit_inputs(time, n_heads), log_decay])


@each_length
@each_count
def test_retention(time, n_heads):
    query, key, value, _ = unit_inputs(time, n_heads)
    log_decay = -noise(n_heads, dtype=torch.float64).exp() / 4
    assert_same(retention, retention_recurrence, [query, key, value, log_decay])


@pytest.mark.parametrize("log_decay", [0.0, LOWEST_LOG_DECAY])
def test_kimi_delta_rule_at_its_limits_in_float32(log_decay):
    inputs = [*unit_inputs(100, 2), torch.full((2, 2, 100, D_KEY), log_decay, dtype=torch.float64)]
    inputs[2], inputs[3] = inputs[2] * 1e4, torch.ones_like(inputs[3])
    short = [part.float().requires_grad_() for part in inputs]
    expected, found = kimi_recurrence(*inputs), kimi_delta_rule(*short)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.square().sum(), short))


def test_retention_forgets_all_and_nothing_in_float32():
    query, key, value, _ = unit_inputs(100, 2)
    log_decay = torch.tensor([0.0, -1e4], dtype=torch.float64)
    expected = retention_recurrence(query, key, value, log_decay)
    found = retention(*(part.float() for part in (query, key, value, log_decay)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_delta_rules_agree_where_they_meet():
    query, key, value, rate = unit_inputs(65, 2)
    decay = -noise(2, 2, 65, dtype=torch.float64).exp().clamp(max=-LOWEST_LOG_DECAY)
    by_head = gated_delta_rule(query, key, value, rate, decay)
    torch.testing.assert_close(kimi_delta_rule(query, key, value, rate, decay[..., None].expand_as(key)), by_head)
    without = gated_delta_rule(query, key, value, rate, torch.zeros_like(decay))
    torch.testing.assert_close(delta_rule(query, key, value, rate), without)


@pytest.mark.parametrize("batched", range(4))
def test_members_may_share_all_inputs_but_one(batched):
    inputs = unit_inputs(65, 2)
    inputs[batched] = torch.stack([inputs[batched], inputs[batched].flip(0)])
    dims = tuple(0 if place == batched else None for place in range(4))
    gradients = torch.func.grad(lambda *parts: delta_rule(*parts).square().sum(), argnums=tuple(range(4)))
    packed = torch.func.vmap(gradients, in_dims=dims)(*inputs)
    for member in range(2):
        alone = gradients(*(part if dim is None else part[member] for part, dim in zip(inputs, dims, strict=True)))
        torch.testing.assert_close(tuple(part[member] for part in packed), alone)


def test_no_gradient_of_a_gradient():
    inputs = [part.requires_grad_() for part in unit_inputs(65, 2)]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(delta_rule(*inputs).square().sum(), inputs, create_graph=True)


@pytest.mark.parametrize("rule", [delta_rule, kimi_delta_rule, retention])
def test_recurrences_stay_float32_under_autocast(rule):
    query, key, value, rate = (part.bfloat16() for part in unit_inputs(65, 2))
    more = {
        delta_rule: (rate,),
        kimi_delta_rule: (rate, -noise(2, 2, 65, D_KEY).square()),
        retention: (torch.tensor([-0.1, -0.2]),),
    }
    inputs = (query, key, value, *more[rule])
    expected = rule(*(part.float() for part in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        found = rule(*inputs)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_step_of_the_delta_rules_stays_float32_under_autocast():
    query, key, value, rate = (part[:, :, 0].bfloat16() for part in unit_inputs(1, 2))
    memory, log_decay = noise(2, 2, D_KEY, D_VALUE), -noise(2, 2, D_KEY).square()
    expected = delta_step(memory, *(part.float() for part in (query, key, value, rate)), log_decay=log_decay)
    with torch.autocast("cpu", torch.bfloat16):
        found = delta_step(memory, query, key, value, rate, log_decay=log_decay)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@each_case
def test_the_memory_is_what_the_state_size_says(options):
    mixer = build(MIXERS, options)
    state = mixer.initial_state(3)
    memory = state if isinstance(state, torch.Tensor) else state[0]
    assert memory.numel() == 3 * mixer.state_size(100)


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[f"{part}" for part, _ in REFUSED])
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(MIXERS, options)


@pytest.mark.parametrize("time", [1, 32, 65])
@pytest.mark.parametrize("rule", [delta_rule, kimi_delta_rule, retention])
def test_operations_are_what_runs(time, rule):
    query, key, value, rate = unit_inputs(time, 1)
    more = {delta_rule: (rate,), kimi_delta_rule: (rate, -key.abs()), retention: (torch.zeros(1),)}
    found = counted(rule, *(part[:1] for part in (query, key, value, *more[rule])))
    assert found == COSTS[rule](time, D_KEY, D_VALUE)


@pytest.mark.parametrize("time", [1, 65])
@each_case
def test_operations_of_the_layers(time, options):
    """Their linears, and the rest by the counts above."""
    mixer = build(MIXERS, options)
    linears = sum(part.weight.numel() for part in mixer.modules() if isinstance(part, torch.nn.Linear))
    convolutions = sum(part.weight.numel() for part in mixer.modules() if isinstance(part, ShortConvolution))
    rule = {"delta_net": delta_rule, "kimi_delta_attention": kimi_delta_rule, "retention": retention}[options["kind"]]
    heads = mixer.n_heads * COSTS[rule](time, mixer.d_key, mixer.d_value)
    assert mixer.flops(time) == 2 * time * (linears + convolutions) + heads


def test_a_key_is_written_over():
    """What is told last for a key is what the memory holds: the delta rule, not the sum."""
    unit = F.normalize(noise(1, 1, 1, D_KEY), dim=-1).expand(1, 1, 5, D_KEY)
    value = noise(1, 1, 5, D_VALUE)
    torch.testing.assert_close(delta_rule(unit, unit, value, torch.ones(1, 1, 5)), value)


def test_kimi_channels_forget_each_at_their_own_pace():
    mixer = build(MIXERS, {"kind": "kimi_delta_attention", "n_heads": 4})
    assert mixer.gate_rank == 8
    with torch.no_grad():
        mixer.dt_bias[5] = 100.0
    decay = mixer._log_decay(noise(2, 3, D_MODEL)).flatten(-2)
    assert (decay[..., 5] == LOWEST_LOG_DECAY).all()
    assert (decay[..., :5] > LOWEST_LOG_DECAY).all()


@pytest.mark.parametrize("n_positions", [16, 1024, 100_000])
def test_kimi_remembers_as_long_as_asked(n_positions):
    mixer = KimiDeltaAttention(D_MODEL, n_heads=4)
    assert mixer.set_memory_length(n_positions) == ("dt_bias",)
    expected = torch.full((1, 4, 8), -1 / n_positions)
    torch.testing.assert_close(mixer._log_decay(torch.zeros(1, D_MODEL)), expected, rtol=1e-3, atol=0)


def test_retention_decays_by_head():
    mixer = Retention(D_MODEL, n_heads=4)
    decay = mixer._log_decay(torch.device("cpu")).exp()
    torch.testing.assert_close(decay, torch.tensor([1 - 2.0**-power for power in (5, 6, 7, 8)]))
    assert mixer.set_memory_length(100) == ()


def test_retention_looks_by_distance():
    """Two equal inputs add different things to a later output even where nothing is forgotten: they are rotated apart."""
    mixer = Retention(8)
    mixer._log_decay = lambda device: torch.zeros(1, device=device)
    x = torch.ones(1, 40, 8)
    torch.nn.init.ones_(mixer.query.weight)
    torch.nn.init.ones_(mixer.key.weight)
    outputs = []
    for place in (10, 30):
        changed = torch.zeros_like(x)
        changed[:, [place, 39]] = 1.0
        outputs.append(mixer.initial_state(1))
        for position in changed.unbind(1):
            _, outputs[-1] = mixer.step(position, outputs[-1])
    (first, _), (second, _) = outputs
    assert (first - second).abs().max() > 1e-2
