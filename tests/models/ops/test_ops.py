"""Each clever form against a dumb one, position by position in float64: outputs and gradients, at odd lengths."""

import pytest
import torch
import torch.nn.functional as F

from models.ops.convolutions.long_convolution import long_convolution, outer_product_convolution
from models.ops.convolutions.short_convolution import ShortConvolution
from models.ops.recurrences.delta_rule import gated_delta_rule
from models.ops.recurrences.gated_linear_attention import LOWEST_LOG_DECAY, gated_linear_attention
from models.ops.recurrences.linear_attention import linear_attention
from models.ops.recurrences.selective_scan import selective_scan
from tests.models.cases import noise

D_KEY, D_VALUE = 3, 4

each_length = pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 63, 65, 129])


def assert_same(clever, dumb, inputs):
    inputs = [value.requires_grad_() for value in inputs]
    outputs = [form(*inputs) for form in (clever, dumb)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    found = [torch.autograd.grad((y * noise(*y.shape, seed=9, dtype=y.dtype)).sum(), inputs) for y in outputs]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def random(time, size, seed):
    return noise(2, 2, time, size, seed=seed, dtype=torch.float64)


def outer(left, right):
    return left[..., None] * right[..., None, :]


def recurrence(query, update):
    """y_t = q_t S_t with S_t = update(t, S_{t-1})."""
    state = query.new_zeros(*query.shape[:-2], D_KEY, D_VALUE)
    outputs = []
    for t in range(query.shape[-2]):
        state = update(t, state)
        outputs.append((query[..., t, None, :] @ state)[..., 0, :])
    return torch.stack(outputs, -2)


@each_length
def test_linear_attention(time):
    def dumb(query, key, value):
        return recurrence(query, lambda t, state: state + outer(key[..., t, :], value[..., t, :]))

    assert_same(linear_attention, dumb, [random(time, size, seed) for seed, size in enumerate((D_KEY, D_KEY, D_VALUE))])


def gla_recurrence(query, key, value, log_decay):
    return recurrence(query, lambda t, state: log_decay[..., t, :, None].exp() * state + outer(key[..., t, :], value[..., t, :]))


def gla_inputs(time, log_decay):
    return [*(random(time, size, seed) for seed, size in enumerate((D_KEY, D_KEY, D_VALUE))), log_decay]


@each_length
def test_gated_linear_attention(time):
    decay = F.logsigmoid(3 * random(time, D_KEY, 3)).clamp(min=LOWEST_LOG_DECAY).detach()
    assert_same(gated_linear_attention, gla_recurrence, gla_inputs(time, decay))


@pytest.mark.parametrize("log_decay", [0.0, LOWEST_LOG_DECAY])
def test_gated_linear_attention_at_its_limits_in_float32(log_decay):
    exact = gla_inputs(65, torch.full((2, 2, 65, D_KEY), log_decay, dtype=torch.float64))
    short = [(value * 1e4 if index < 3 else value).float() for index, value in enumerate(exact)]
    expected = gla_recurrence(*exact) * 1e12
    torch.testing.assert_close(
        gated_linear_attention(*short).double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
    )


def delta_recurrence(query, key, value, rate, log_decay):
    def update(t, state):
        state = log_decay[..., t, None, None].exp() * state
        missing = value[..., t, :] - (key[..., t, None, :] @ state)[..., 0, :]
        return state + outer(key[..., t, :], rate[..., t, None] * missing)

    return recurrence(query, update)


@each_length
def test_gated_delta_rule(time):
    query, key, value = (random(time, size, seed) for seed, size in enumerate((D_KEY, D_KEY, D_VALUE)))
    rate, log_decay = random(time, 1, 3)[..., 0].sigmoid(), -random(time, 1, 4)[..., 0].exp()
    assert_same(gated_delta_rule, delta_recurrence, [query, F.normalize(key, dim=-1), value, rate, log_decay])


def test_gated_delta_rule_forgets_all_and_nothing():
    query, key, value = (random(150, size, seed) for seed, size in enumerate((D_KEY, D_KEY, D_VALUE)))
    key = F.normalize(key, dim=-1)
    for log_decay in (0.0, -1e4):
        inputs = [query, key, value, torch.ones(2, 2, 150), torch.full((2, 2, 150), log_decay)]
        exact = delta_recurrence(*(part.double() for part in inputs))
        torch.testing.assert_close(gated_delta_rule(*(part.float() for part in inputs)).double(), exact, rtol=1e-4, atol=1e-4)


def scan_inputs(time):
    steps = F.softplus(2 * random(time, 5, 0)[0])
    x, write, read = (random(time, size, seed)[0] for seed, size in enumerate((5, 3, 3), start=1))
    return [steps, x, write, read, -noise(3, 5, dtype=torch.float64).exp()]


def scan_recurrence(steps, x, write, read, speed):
    state, outputs = torch.zeros_like(speed), []
    for t in range(x.shape[1]):
        state = (steps[:, t, None] * speed).exp() * state + outer(write[:, t], steps[:, t] * x[:, t])
        outputs.append((read[:, t, None, :] @ state)[:, 0])
    return torch.stack(outputs, 1)


@each_length
def test_selective_scan(time):
    assert_same(selective_scan, scan_recurrence, [part.detach() for part in scan_inputs(time)])


def test_selective_scan_takes_a_few_sequences_at_a_time(monkeypatch):
    whole = [part.detach().requires_grad_() for part in scan_inputs(65)]
    expected = selective_scan(*whole)
    monkeypatch.setattr("models.ops.recurrences.selective_scan.CACHED", 1)
    found = selective_scan(*whole)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), whole) for y in (found, expected)))


def test_selective_scan_forgets_all_and_nothing():
    for scale in (0.0, 1e4):
        steps, *others = scan_inputs(65)
        inputs = [steps * scale, *others]
        exact = scan_recurrence(*inputs)
        torch.testing.assert_close(selective_scan(*(part.float() for part in inputs)).double(), exact, rtol=1e-3, atol=1e-3)


@each_length
def test_long_convolution(time):
    def dumb(x, taps):
        return torch.stack([sum(taps[:, t - s] * x[:, s] for s in range(t + 1)) for t in range(time)], 1)

    assert_same(long_convolution, dumb, [random(time, 5, 0)[0], noise(5, time, dtype=torch.float64)])


@each_length
def test_outer_product_convolution(time):
    def dumb(read, write, value, taps):
        def update(t, _):
            return sum(taps[:, t - s, None, None] * outer(write[:, :, s], value[:, :, s]) for s in range(t + 1))

        return recurrence(read, update)

    inputs = [random(time, size, seed) for seed, size in enumerate((D_KEY, D_KEY, D_VALUE))]
    assert_same(outer_product_convolution, dumb, [*inputs, noise(2, time, dtype=torch.float64)])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_short_convolution(width):
    convolve = ShortConvolution(6, width, bias=True, silu=True).double()
    torch.nn.init.normal_(convolve.bias)

    def dumb(x):
        mixed = F.conv1d(F.pad(x.mT, (width - 1, 0)), convolve.weight[:, None], convolve.bias, groups=6)
        return F.silu(mixed).mT

    assert_same(convolve, dumb, [noise(2, 9, 6, dtype=torch.float64)])


def test_recurrences_stay_float32_under_autocast():
    inputs = [noise(2, 65, 8, seed=seed).bfloat16() for seed in range(3)]
    expected = linear_attention(*(part.float() for part in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_attention(*inputs), expected)


def test_selective_scan_refuses_second_derivatives():
    inputs = [part.detach().requires_grad_() for part in scan_inputs(17)]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(selective_scan(*inputs).sum(), inputs, create_graph=True)
