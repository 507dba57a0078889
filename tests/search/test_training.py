"""The training loop: against a bare torch loop, its ways to end, and exact resumption."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from models import RackSpec
from search import checkpoint, metrics, training
from search.member import Member, TrainSpec
from search.packing import Pack
from search.schedules import ScheduleSpec, learning_rate
from tests.search.cases import CPU, data, evaluate_on, member, rack_spec, run, same, weights


class KilledError(Exception):
    """Stands for a kill."""


def test_the_loss_goes_down():
    (single,) = run([member(lr=1e-2)], n_steps=60, eval_every=10)
    assert single.history[-1]["train_loss"] < 0.8 * single.history[0]["train_loss"]
    assert single.history[-1]["accuracy"] > single.history[0]["accuracy"]
    assert [row["step"] for row in single.history] == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_equals_a_bare_torch_loop(clip):
    batches, model = data(), rack_spec().build(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-7)
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
    keys = {"betas": (0.9, 0.98), "eps": 1e-7, "grad_clip": clip, "schedule": {"warmup_steps": 5}}
    (single,) = run([member(batches=batches, lr=1e-2, weight_decay=0.1, seed=3)], eval_every=1, **keys)
    torch.testing.assert_close(torch.tensor([row["train_loss"] for row in single.history]), torch.tensor(losses))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(single.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_weight_decay_is_on_everything():
    """One group, as the reference has it: with a rate times decay of one half, parameters without gradient halve each step."""
    model = rack_spec().build(0)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    run([Member(model, data(), 1e-9, 0.5e9)], n_steps=1)
    assert any(name.endswith("norm.weight") for name in before)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor, before[name] / 2, rtol=1e-5, atol=1e-7)


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
@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_a_selection_metric_that_is_not_finite_is_divergence(metric, bad):
    (single,) = run([member()], n_steps=4, eval_every=1, evaluate=scripted(metric, [2.0, 1.0, bad]), select_metric=metric)
    assert single.status == "diverged"
    assert single.step == 3
    assert single.best["step"] == 2


def test_a_rate_that_is_too_high_diverges():
    (single,) = run([member(lr=1e6)], n_steps=100, eval_every=5, select_metric="perplexity")
    assert single.status == "diverged"
    assert single.step < 100
    assert len(single.history) == single.step / 5


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

    def keep(single, row):
        if single.status != "running":
            at_end[id(single)] = (weights(single), row["step"])

    run(members, n_steps=40, eval_every=5, evaluate=evaluate, stop_at=0.99, on_evaluation=keep)
    stopped, step = at_end[id(members[0])]
    assert step == 10
    assert members[0].status == "solved"
    assert members[1].step == 40
    assert same(weights(members[0]), stopped)
    assert members[0].history[-1]["step"] == 10


def dropout_spec():
    block = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 16}, "dropout": 0.3}
    return RackSpec(d_model=16, vocab_size=8, stacks=[{"n_blocks": 2, "block": block}])


def a_pack(dropout):
    spec, batches = dropout_spec() if dropout else rack_spec(), data()
    return [member(spec, batches, lr=lr, weight_decay=0.1, seed=seed) for lr, seed in ((1e-2, 0), (1e-3, 1), (3e-3, 2))]


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("n_before", [1, 3, 5])
def test_resuming_is_exact(tmp_path, monkeypatch, dropout, n_members, n_before):
    """A run that is killed in an evaluation goes on from its last checkpoint to the same numbers, to the bit."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    keys = {"n_steps": 23, "eval_every": 4, "seed": 5}
    undisturbed = run(a_pack(dropout)[:n_members], **keys)

    def kill(single, row):  # noqa: ARG001 - the shape of the contract
        if row["step"] > 4 * n_before:
            raise KilledError

    path = tmp_path / "run.safetensors"
    with pytest.raises(KilledError):
        run(a_pack(dropout)[:n_members], **keys, on_evaluation=kill, checkpoint_path=path)
    assert path.exists()
    seen = []
    torch.manual_seed(99)
    keys |= {"on_evaluation": lambda _, row: seen.append(row["step"]), "checkpoint_path": path}
    resumed = run(a_pack(dropout)[:n_members], **keys)
    assert min(seen) == min(23, 4 * (n_before + 1))
    for one, other in zip(resumed, undisturbed, strict=True):
        assert one.history == other.history
        assert (one.status, one.step, one.best) == (other.status, other.step, other.best)
        assert same(weights(one), weights(other))
        assert same(one.best_weights, other.best_weights)


def test_resuming_a_pack_of_which_some_have_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    keys = {"n_steps": 40, "eval_every": 4, "patience": 2}

    def pack():
        batches = data()
        return [member(batches=batches, lr=lr, weight_decay=0.1) for lr in (1e-12, 1e-3)]

    undisturbed = run(pack(), **keys)
    assert undisturbed[0].status == "stopped"
    assert undisturbed[1].step > undisturbed[0].step + 4

    def kill(_, row):
        if row["step"] > undisturbed[0].step + 4:
            raise KilledError

    path = tmp_path / "run.safetensors"
    with pytest.raises(KilledError):
        run(pack(), **keys, on_evaluation=kill, checkpoint_path=path)
    for one, other in zip(run(pack(), **keys, checkpoint_path=path), undisturbed, strict=True):
        assert (one.history, one.status) == (other.history, other.status)
        assert same(weights(one), weights(other))


def test_a_checkpoint_of_a_run_that_ended_is_not_trained_further(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "run.safetensors"
    (first,) = run([member()], checkpoint_path=path)
    (again,) = run([member()], checkpoint_path=path, on_evaluation=lambda *_: pytest.fail("trained"))
    assert (again.status, again.step, again.history) == ("finished", 20, first.history)
    assert same(weights(again), weights(first))


def test_checkpoints_are_written_now_and_then(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    run([member()], checkpoint_path=path)
    assert not path.exists()  # all over in less than CHECKPOINT_SECONDS
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    run([member()], checkpoint_path=path)
    assert path.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "no state", "bad state"])
def test_a_damaged_checkpoint_is_a_readable_error(tmp_path, damage):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, {"x": torch.ones(100)}, {"step": 3})
    whole = path.read_bytes()
    if damage == "no state":
        save_file({"x": torch.ones(3)}, path)
    elif damage == "bad state":
        save_file({"x": torch.ones(3)}, path, metadata={"state": "{"})
    else:
        path.write_bytes({"cut": whole[:-50], "empty": b"", "garbage": b"not a checkpoint" * 10}[damage])
    with pytest.raises(ValueError, match=r"run.safetensors is damaged .*; delete it to start this trial again") as caught:
        checkpoint.load(path, CPU)
    assert not isinstance(caught.value.__cause__, Exception)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, {"x": torch.ones(3)}, {"step": 1})

    def cut_short(tensors, filename, metadata):  # noqa: ARG001 - what save_file takes
        filename.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", cut_short)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, {"x": torch.zeros(3)}, {"step": 2})
    tensors, state = checkpoint.load(path, CPU)
    assert state == {"step": 1}
    assert torch.equal(tensors["x"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_checkpoints_keep_tensors_and_state(tmp_path):
    path = tmp_path / "deep" / "er" / "run.safetensors"
    tensors = {"strided": torch.arange(6.0).view(2, 3).T, "empty": torch.empty(0), "scalar": torch.tensor(2.5)}
    checkpoint.save(path, tensors, {"history": [{"loss": math.nan}, {"loss": math.inf}]})
    found, state = checkpoint.load(path, CPU)
    assert same(found, tensors)
    assert math.isnan(state["history"][0]["loss"])
    assert math.isinf(state["history"][1]["loss"])


def test_shared_weights_are_saved_once_and_come_back():
    blocks = [{"mlp": {"kind": "mlp", "d_ff": 16}, "share": "one"}] * 3
    spec = RackSpec(d_model=16, vocab_size=8, stacks=[{"blocks": blocks}], tie_embeddings=True)
    first, second = spec.build(0), spec.build(1)
    saved = checkpoint.weights(first)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(tensor.numel() for tensor in first.parameters())
    checkpoint.load_weights(second, saved)
    tokens = data()[0][0]
    assert torch.equal(first(tokens), second(tokens))
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.load_weights(rack_spec().build(0), saved)


def test_weights_of_other_sizes_are_refused():
    small, large = rack_spec(({"kind": "mlp", "d_ff": 1},)).build(0), rack_spec(({"kind": "mlp", "d_ff": 16},)).build(0)
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.load_weights(large, checkpoint.weights(small))


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_schedules_start_and_end(kind, warmup):
    schedule = ScheduleSpec(kind=kind, warmup_steps=warmup, min_lr=1e-5, decay_fraction=0.25)
    rates = [learning_rate(schedule, 1e-3, step, 110) for step in range(111)]
    if warmup:
        assert rates[0] == pytest.approx(1e-4)
        assert rates[:10] == pytest.approx([1e-3 * (step + 1) / 10 for step in range(10)])
    assert rates[warmup] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[110] == pytest.approx(1e-3 if kind == "constant" else 1e-5)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))


def test_schedules_in_the_middle():
    cosine = ScheduleSpec(kind="cosine", min_lr=0.0)
    assert learning_rate(cosine, 1.0, 50, 100) == pytest.approx(0.5)
    assert learning_rate(cosine, 1.0, 25, 100) == pytest.approx(0.5 + math.sqrt(0.125))
    decay = ScheduleSpec(kind="wsd", min_lr=0.0, decay_fraction=0.2)
    assert [learning_rate(decay, 1.0, step, 100) for step in (0, 80, 90, 95)] == pytest.approx([1.0, 1.0, 0.5, 0.25])
    assert learning_rate(ScheduleSpec(kind="cosine", min_lr=1e-2), 1e-3, 100, 100) == 1e-3  # never above the peak
    assert learning_rate(ScheduleSpec(warmup_steps=10), 1.0, 4, 5) == 0.5  # ends within the warm-up


def test_batches_go_through_the_data_once_an_epoch_in_an_order_of_their_own():
    batches = data(n_examples=40, batch_size=16)
    assert batches.steps_per_epoch == 3
    epochs = [[batches[step] for step in range(first, first + 3)] for first in (0, 3)]
    assert [len(inputs) for inputs, _ in epochs[0]] == [16, 16, 8]
    rows = [sorted(row.tobytes() for inputs, _ in epoch for row in inputs.numpy()) for epoch in epochs]
    assert rows[0] == rows[1]
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    assert torch.equal(batches[4][0], data(n_examples=40)[4][0])  # any step, on its own
    assert torch.equal(torch.cat([inputs for inputs, _ in batches.in_order()]), batches.inputs)


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
        training.train(members, spec, n_steps=1, eval_every=1, evaluate=evaluate_on(data(split="test")))


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
