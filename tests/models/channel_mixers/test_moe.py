"""The balance of experts, against loops and its limits, and experts that see everything."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from models import CHANNEL_MIXERS
from models.channel_mixers import moe
from models.channel_mixers.moe import MoE, load_balance
from models.ops.experts import LEAST_SAVED
from models.rack.reports import collecting
from tests.models.cases import D_MODEL, build, noise, packed_equals_separate


def counted(logits, n_active):
    """The balance and the largest share, position by position."""
    n_positions, n_experts = logits.shape
    chosen, chances = [0] * n_experts, [0.0] * n_experts
    for row in logits.tolist():
        for expert in sorted(range(n_experts), key=lambda index: -row[index])[:n_active]:
            chosen[expert] += 1
        total = sum(torch.tensor(row, dtype=torch.float64).exp().tolist())
        chances = [chance + float(torch.tensor(value).exp()) / total for chance, value in zip(chances, row, strict=True)]
    shares = [count / n_positions / n_active for count in chosen]
    balance = n_experts * sum(share * chance / n_positions for share, chance in zip(shares, chances, strict=True))
    return balance, max(shares)


@pytest.mark.parametrize(("n_experts", "n_active"), [(4, 1), (5, 2), (8, 3), (3, 3)])
def test_the_balance_is_what_a_count_gives(n_experts, n_active):
    logits = 2 * noise(23, n_experts, dtype=torch.float64)
    for found, expected in zip(load_balance(logits, n_active), counted(logits, n_active), strict=True):
        assert found.item() == pytest.approx(expected)
    for found, expected in zip(load_balance(logits.view(23, 1, -1), n_active), load_balance(logits, n_active), strict=True):
        assert torch.equal(found, expected)


def test_the_limits_of_the_balance():
    balanced = torch.stack([100 * F.one_hot(torch.tensor([place, place + 1]) % 8, 8).sum(0) for place in range(0, 8, 2)] * 5)
    assert load_balance(balanced.double(), 2)[0].item() == pytest.approx(1.0)
    assert load_balance(balanced.double(), 2)[1].item() == pytest.approx(1 / 8)
    collapsed = torch.zeros(20, 8).index_fill(1, torch.tensor([3, 5]), 100.0)
    assert load_balance(collapsed, 2)[0].item() == pytest.approx(8 / 2)
    assert load_balance(collapsed, 2)[1].item() == pytest.approx(1 / 2)


def test_the_gradient_of_the_balance_is_that_of_the_mean_probabilities():
    logits = noise(11, 5, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad(load_balance(logits, 2)[0], logits)
    shares = torch.zeros(5, dtype=torch.float64)
    for row in logits:
        shares[row.topk(2).indices] += 1 / 22
    (expected,) = torch.autograd.grad(5 * (shares * logits.softmax(-1)).sum() / 11, logits)
    torch.testing.assert_close(found, expected)


def reports(mixer, x):
    with collecting() as found:
        mixer(x)
    return found


@pytest.mark.parametrize(
    ("balance", "is_training", "losses", "metrics"),
    [
        (0.0, True, [], []),
        (0.1, True, ["load_balance"], ["load_balance", "largest_expert_share"]),
        (0.0, False, [], ["load_balance", "largest_expert_share"]),
        (0.1, False, ["load_balance"], ["load_balance", "largest_expert_share"]),
    ],
)
def test_what_is_reported(balance, is_training, losses, metrics):
    mixer, x = MoE(D_MODEL, balance=balance).train(is_training), noise(2, 9, D_MODEL)
    found = reports(mixer, x)
    assert (list(found.losses), list(found.metrics)) == (losses, metrics)
    expected = load_balance(mixer.router(x), 2)
    for name, value in zip(metrics, expected, strict=bool(metrics)):
        assert found.metrics[name] == value
    for loss in found.losses.values():
        assert loss == balance * expected[0]


@pytest.mark.parametrize("is_training", [True, False])
def test_nothing_is_counted_for_nobody(is_training, monkeypatch):
    monkeypatch.setattr(moe, "load_balance", None)
    MoE(D_MODEL).train(is_training)(noise(2, 9, D_MODEL))


def test_the_output_does_not_depend_on_who_collects():
    mixer, x = MoE(D_MODEL), noise(2, 9, D_MODEL)
    with collecting():
        heard = mixer(x)
    assert torch.equal(heard, mixer(x))


def test_the_loss_moves_the_router_alone_and_balances_it():
    torch.manual_seed(0)
    mixer, x = MoE(16, n_experts=8, balance=1.0), noise(200, 16) + 1
    with torch.no_grad():
        mixer.router.weight[:2] += 0.5
    optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-2)
    shares = []
    for _ in range(100):
        found = reports(mixer, x)
        shares.append(found.metrics["largest_expert_share"].item())
        optimizer.zero_grad()
        found.losses["load_balance"].backward()
        assert {name for name, p in mixer.named_parameters() if p.grad is not None and p.grad.any()} == {"router.weight"}
        optimizer.step()
    assert shares[0] > 0.4
    assert shares[-1] < 0.2


@pytest.mark.parametrize("scale", [0.0, 100.0])
def test_the_balance_is_finite_and_in_float32(scale):
    mixer, x = MoE(D_MODEL), (scale * noise(2, 65, D_MODEL)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = reports(mixer, x).losses["load_balance"]
    assert loss.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [mixer.router.weight, x]))


SHARED = {"kind": "moe", "n_experts": 4, "n_active": 2, "d_expert": 5, "n_shared": 3}


def test_shared_experts_see_every_position_with_weight_one():
    mixer, routed = build(CHANNEL_MIXERS, SHARED), build(CHANNEL_MIXERS, {**SHARED, "n_shared": 0})
    routed.load_state_dict({name: mixer.state_dict()[name] for name in routed.state_dict()})
    x = noise(2, 7, D_MODEL)
    expected = routed(x)
    for index in range(3):
        own = slice(5 * index, 5 * index + 5)
        gate, up, down = mixer.shared_gate.weight[own], mixer.shared_up.weight[own], mixer.shared_down.weight[:, own]
        expected = expected + ((x @ up.mT) * F.gelu(x @ gate.mT)) @ down.mT
    torch.testing.assert_close(mixer(x), expected)
    assert not [name for name in routed.state_dict() if "shared" in name]


def test_shared_experts_are_packed_and_counted():
    packed_equals_separate([build(CHANNEL_MIXERS, SHARED, seed=seed) for seed in range(2)], noise(2, 3, 5, D_MODEL))
    mixer = build(CHANNEL_MIXERS, SHARED)
    n_positions = LEAST_SAVED // (D_MODEL * 5)  # enough to be sorted
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer(noise(1, n_positions, D_MODEL))
    assert mixer.flops(n_positions) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": -0.1}, "balance = -0.1 must be at least 0"),
        ({"n_shared": -1}, "n_shared = -1 must be at least 0"),
        ({"n_active": 1}, "n_active = 1 must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MoE(16, **options)
