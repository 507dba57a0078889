"""The training loop: against a bare torch loop, and its ways to end."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from search.training import loop, metrics
from search.training.optimizer import clip_gradients
from search.training.packing import Pack
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tests.search.cases import FAR_TOO_HIGH, data, dropout_spec, evaluate_on, member, rack_spec, run, same, weights


def test_the_loss_goes_down():
    (single,) = run([member(lr=1e-2)], n_steps=60, eval_every=10)
    assert single.history[-1]["train_loss"] < 0.8 * single.history[0]["train_loss"]
    assert single.best["loss"] < single.history[0]["loss"] - 0.15
    assert [row["step"] for row in single.history] == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_equals_a_bare_torch_loop(clip):
    batches, model = data(), rack_spec().build(3)
    parameters = list(model.parameters())
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": 0.1},
        {"params": [each for each in parameters if each.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-3)
    losses = []
    for step in range(20):
        inputs, targets = batches[step]
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (step + 1) / 5) * 1e-2
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    keys = {"betas": (0.9, 0.98), "eps": 1e-3, "grad_clip": clip, "schedule": {"warmup_steps": 5}}
    (single,) = run([member(batches=batches, lr=1e-2, weight_decay=0.1, seed=3)], eval_every=1, **keys)
    torch.testing.assert_close(torch.tensor([row["train_loss"] for row in single.history]), torch.tensor(losses))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(single.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decays_all", [False, True])
def test_vectors_decay_only_where_all_do(decays_all):
    """With a rate times decay of one half, what decays halves; all of it in MAD's mode mad, as the reference has it."""
    model = rack_spec().build(0)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    run([TrainState(model, data(), 1e-9, 0.5e9, decays_all=decays_all)], n_steps=1)
    assert any(name.endswith("norm.weight") for name in before)
    for name, tensor in model.named_parameters():
        decays = decays_all or tensor.ndim > 1
        torch.testing.assert_close(tensor, before[name] / 2 if decays else before[name], rtol=1e-5, atol=1e-7)


def test_evaluation_counts_the_last_step_and_uses_eval_mode():
    modes = []

    def evaluate(pack, running):
        modes.append([model.training for model in pack.models])
        return evaluate_on(data(split="test"))(pack, running)

    (single,) = run([member()], n_steps=7, eval_every=3, evaluate=evaluate)
    assert [row["step"] for row in single.history] == [3, 6, 7]
    assert modes == [[False]] * 3
    assert single.model.training
    assert single.status == "finished"
    assert single.step == 7


def scripted(metric, values):
    """An evaluation that reports what is scripted."""
    left = iter(values)

    def evaluate(pack, running):  # noqa: ARG001 - the shape of the contract
        found = {name: torch.ones(len(running)) for name in metrics.NAMES}
        return {**found, metric: torch.full((len(running),), next(left))}

    return evaluate


@pytest.mark.parametrize(
    ("values", "keys", "status", "n_evaluations"),
    [
        ([0.1, 0.5, 0.95, 1.0], {"stop_at": 0.9}, "solved", 3),
        ([0.1, 0.9, 0.9, 0.9], {"stop_at": 0.9}, "finished", 4),  # exceeds, not reaches
        ([0.5, 0.4, 0.4, 0.9], {"patience": 2}, "stopped", 3),
        ([0.5, 0.4, 0.6, 0.5], {"patience": 2}, "finished", 4),
        ([0.5, 0.5, 0.5, 0.6], {"patience": 2}, "stopped", 3),  # no gain is no gain
        ([0.1, 0.2, 0.3, 1.0], {"stop_at": 0.99, "patience": 1}, "solved", 4),
        ([0.1, 0.2, 0.3, 0.2], {"patience": 1}, "stopped", 4),
        ([0.1, 0.2, 0.3, 0.4], {}, "finished", 4),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "macro_accuracy"])
def test_ways_to_stop(metric, values, keys, status, n_evaluations):
    (single,) = run([member()], n_steps=4, eval_every=1, evaluate=scripted(metric, values), stop_metric=metric, **keys)
    assert (single.status, len(single.history), single.step) == (status, n_evaluations, n_evaluations)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergence(bad):
    (single,) = run([member()], n_steps=4, eval_every=1, evaluate=scripted("loss", [2.0, 1.0, bad]))
    assert single.status == "diverged"
    assert single.step == 3
    assert single.best["step"] == 2


def test_a_rate_that_is_too_high_diverges():
    (single,) = run([member(lr=FAR_TOO_HIGH)], n_steps=20, eval_every=5, select_metric="perplexity")
    assert single.status == "diverged"
    assert single.step == 5
    assert len(single.history) == 1


def test_a_model_that_gives_nan_diverges_and_has_no_best_weights():
    single = member()
    with torch.no_grad():
        single.model.head.output.weight[0, 0] = torch.nan
    run([single])
    assert (single.status, single.step, single.best, single.best_weights) == ("diverged", 5, {}, {})
    assert math.isnan(single.history[0]["train_loss"])


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_best_weights_are_those_of_the_best_evaluation_and_the_model_keeps_the_last(metric):
    seen, single = [], member(lr=1e-2)
    keys = {"evaluate": scripted(metric, [3.0, 1.0, 2.0, 1.0]), "select_metric": metric}
    run([single], n_steps=4, eval_every=1, on_evaluation=lambda m, _: seen.append(weights(m)), **keys)
    assert single.best == single.history[1]  # the first of equals
    assert same(single.best_weights, seen[1])
    assert same(weights(single), seen[3])
    assert not same(seen[1], seen[3])


def test_members_that_stopped_do_not_move():
    """Neither by momentum nor by decay."""
    batches = data()
    members = [member(batches=batches, lr=1e-2, weight_decay=1.0), member(batches=batches, lr=1e-3, weight_decay=1.0)]
    at_end = {}

    def evaluate(pack, running):
        found = evaluate_on(data(split="test"))(pack, running)
        if members[0] in running and running[0].step >= 5:
            found["accuracy"][0] = 1.0
        return found

    def attention_mask(single, row):
        if single.status != "running":
            at_end[id(single)] = (weights(single), row["step"])

    run(members, n_steps=40, eval_every=5, evaluate=evaluate, stop_at=0.99, on_evaluation=attention_mask)
    stopped, step = at_end[id(members[0])]
    assert step == 10
    assert members[0].status == "solved"
    assert members[1].step == 40
    assert same(weights(members[0]), stopped)
    assert members[0].history[-1]["step"] == 10


def test_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run([member(dropout_spec())], n_steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_missing_device_is_a_readable_error():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    spec, members = TrainSpec(device="cuda"), [member()]
    with pytest.raises(ValueError, match="device is 'cuda', but torch sees no CUDA device here; give 'auto' or 'cpu'"):
        loop.train(members, spec, n_steps=1, eval_every=1, evaluate=evaluate_on(data(split="test")))


def test_bfloat16_trains_close_to_float32():
    curves = []
    for precision in ("fp32", "bf16"):
        (single,) = run([member(lr=1e-2)], n_steps=30, eval_every=30, precision=precision)
        assert all(parameter.dtype == torch.float32 for parameter in single.model.parameters())
        curves.append(single.history[-1]["train_loss"])
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.05)


def test_evaluation_of_a_pack_of_one_is_that_of_the_model():
    single = member()
    (found,) = [evaluate_on(data(split="test"))(Pack([single.model]), [single])]
    inputs, targets = data(split="test", batch_size=48)[0]
    assert found["loss"].item() == pytest.approx(F.cross_entropy(single.model(inputs).mT, targets).item(), rel=1e-5)


@pytest.mark.parametrize("largest", [0.5, 1.0, 1.0 + 1e-6, 2.0])
def test_gradients_are_clipped_as_torch_does(largest):
    """Whose norm is 1: longer than may be, just as long, and shorter; and one parameter has none."""
    ours, theirs = ([nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))] for _ in range(2))
    for parameters in (ours, theirs):
        parameters[0].grad, parameters[1].grad = torch.full((3, 3), 0.2), torch.full((2,), 0.32**0.5)
    clip_gradients(iter(ours), largest)
    nn.utils.clip_grad_norm_(theirs, largest)
    assert ours[2].grad is None
    for found, expected in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(found.grad, expected.grad)


def test_a_norm_that_is_no_number_is_left_to_torch():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, float("nan")])
    clip_gradients([parameter], 1.0)
    assert parameter.grad.isnan().all()
