"""A packed grid gives what separate runs give: for every mixer and channel mixer, with own data, with early ends."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import CHANNEL_MIXERS, MIXERS, RackSpec
from search.training import metrics
from search.training.loop import stack_batches
from search.training.packing import Pack
from search.training.state import TrainState
from tests.models.cases import CHANNEL_MIXER_CASES, MIXER_CASES
from tests.search.cases import TASK, data, evaluate_on, member, rack_spec, run, same, weights

GRID = [(1e-4, 0.0), (1e-3, 0.0), (1e-3, 1.0)]  # so much decay is seen in few steps
CURVES = ("train_loss", "loss", "batch_loss")
PARTS = MIXER_CASES | CHANNEL_MIXER_CASES
# The kinds with their defaults run always, the options that change their form with the slow tests.
CASES = [
    pytest.param([part], id=name, marks=() if name in (*MIXERS, *CHANNEL_MIXERS) else pytest.mark.slow)
    for name, part in PARTS.items()
]


def assert_same_curves(packed, separate, tolerance=1e-4):
    assert [row["step"] for row in packed.history] == [row["step"] for row in separate.history]
    for name in CURVES:
        curves = [torch.tensor([row[name] for row in single.history]) for single in (packed, separate)]
        torch.testing.assert_close(*curves, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def has_moved(single):
    return single.history[0]["train_loss"] != single.history[-1]["train_loss"]


def unmeasured(pack, running):  # noqa: ARG001 - the shape of the contract
    return {name: torch.zeros(len(running)) for name in metrics.NAMES}


@pytest.mark.parametrize("layers", CASES)
def test_a_packed_grid_equals_separate_runs(layers):
    spec, batches, test = rack_spec(layers), data(), data(split="test")
    keys = {"n_steps": 10, "eval_every": 1, "evaluate": unmeasured}  # of 3 steps an epoch
    packed = run([member(spec, batches, lr=lr, weight_decay=decay) for lr, decay in GRID], **keys)
    found = evaluate_on(test)(Pack([single.model for single in packed]), packed)
    for index, single in enumerate(packed):
        (alone,) = run([member(spec, batches, lr=single.lr, weight_decay=single.weight_decay)], **keys)
        assert_same_curves(single, alone)
        assert has_moved(single)
        for name, values in evaluate_on(test)(Pack([alone.model]), [alone]).items():
            torch.testing.assert_close(found[name][index], values[0], rtol=1e-3, atol=1e-3)
    assert not same(weights(packed[1]), weights(packed[2]))


def evaluate_own(tests):
    """Each member is evaluated on its own data; `tests` maps training data to it."""

    def evaluate(pack, running):
        own = [tests[id(single.batches)] for single in running]
        return metrics.evaluate(pack, [stack_batches(own, step) for step in range(own[0].steps_per_epoch)])

    return evaluate


@pytest.mark.parametrize("name", ["attention", "moe"])
def test_members_with_their_own_data_equal_separate_runs(name):
    spec, seeds = rack_spec([PARTS[name]]), (0, 1, 2)
    batches = {seed: data(seed) for seed in seeds}
    tests = {id(batches[seed]): data(seed, "test", 20) for seed in seeds}
    keys = {"n_steps": 20, "eval_every": 5, "evaluate": evaluate_own(tests)}
    packed = run([member(spec, batches[seed], seed=seed) for seed in seeds], **keys)
    for single, seed in zip(packed, seeds, strict=True):
        assert_same_curves(single, run([member(spec, batches[seed], seed=seed)], **keys)[0])
    assert len({single.history[0]["loss"] for single in packed}) == 3


def test_a_pack_on_a_schedule_with_clipped_gradients_equals_separate_runs():
    batches = data()
    keys = {"n_steps": 30, "eval_every": 5, "grad_clip": 0.1, "schedule": {"kind": "wsd", "warmup_steps": 10}}
    packed = run([member(batches=batches, lr=lr) for lr in (1e-4, 1e-2)], **keys)
    for single in packed:
        assert_same_curves(single, run([member(batches=batches, lr=single.lr)], **keys)[0])
    assert packed[1].history[0]["lr"] == pytest.approx(5e-3)


ACCURACIES = {1e-3: lambda step: step / 24, 1e-4: lambda step: step / 60, 1e-12: lambda _: 0.1}
"""By learning rate and the step of the evaluation before: made up, as those of training may tip over a limit by rounding."""


def test_members_that_finish_early_leave_and_the_others_go_on_alike():
    """The first solves early, the third runs out of patience, the second goes on to the end."""
    batches, measured = data(n_examples=32), evaluate_on(data(split="test"))

    def evaluate(pack, running):
        scripted = torch.tensor([ACCURACIES[single.lr](single.step) for single in running])
        return {**measured(pack, running), "accuracy": scripted}

    keys = {"n_steps": 60, "eval_every": 3, "stop_at": 0.99, "patience": 6, "evaluate": evaluate}
    packed = run([member(batches=batches, lr=lr, weight_decay=0.1) for lr in ACCURACIES], **keys)
    separate = [run([member(batches=batches, lr=lr, weight_decay=0.1)], **keys)[0] for lr in ACCURACIES]
    assert [(single.status, single.step) for single in packed] == [("solved", 27), ("finished", 60), ("stopped", 21)]
    for one, other in zip(packed, separate, strict=True):
        assert (one.status, one.step) == (other.status, other.step)
        assert_same_curves(one, other)


def test_a_diverging_member_does_not_touch_the_others():
    batches = data()
    members = [member(batches=batches, lr=1e-3), member(batches=batches, lr=1e-3)]
    with torch.no_grad():
        members[0].model.embedding.weight.fill_(torch.nan)
    packed = run(members, n_steps=20, eval_every=10)
    assert packed[0].status == "diverged"
    assert packed[0].step == 10
    assert packed[1].status == "finished"
    assert_same_curves(packed[1], run([member(batches=batches, lr=1e-3)], n_steps=20, eval_every=10)[0])


def test_tied_and_shared_weights_can_be_packed():
    blocks = [{"mixer": "attention", "mlp": {"kind": "mlp", "d_ff": 16}, "share": "one"}] * 2
    spec = RackSpec(d_model=16, vocab_size=8, stacks=[{"blocks": blocks}], tie_embeddings=True)
    batches = data()
    packed = run([member(spec, batches, lr=lr) for lr in (1e-3, 3e-3)])
    for single in packed:
        assert_same_curves(single, run([member(spec, batches, lr=single.lr)])[0])


class RandomFeatures(nn.Module):
    """A model of a caller, with a buffer that is drawn with its weights."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TASK.vocab_size, 16)
        self.register_buffer("features", torch.randn(16, 16))
        self.output = nn.Linear(16, TASK.vocab_size)

    def forward(self, tokens):
        return self.output(F.relu(self.embedding(tokens).cumsum(1) @ self.features))


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def test_each_model_keeps_its_own_buffers():
    models = [seeded(RandomFeatures, seed) for seed in (0, 1)]
    inputs = data()[0][0]
    torch.testing.assert_close(Pack(models)(inputs), torch.stack([model(inputs) for model in models]))


def test_each_model_trains_with_its_own_buffers():
    batches = data()
    packed = run([TrainState(seeded(RandomFeatures, seed), batches, 1e-3, 0.0) for seed in (0, 1)])
    for seed, single in enumerate(packed):
        assert_same_curves(single, run([TrainState(seeded(RandomFeatures, seed), batches, 1e-3, 0.0)])[0])


def test_a_batch_for_all_and_a_batch_for_each():
    models = [rack_spec().build(seed) for seed in (0, 1)]
    inputs = torch.stack([data(seed)[0][0] for seed in (0, 1)])
    alone = [model(batch) for model, batch in zip(models, inputs, strict=True)]
    torch.testing.assert_close(Pack(models)(inputs), torch.stack(alone))
    torch.testing.assert_close(Pack(models)(inputs[0])[0], alone[0])
    assert Pack(models[:1])(inputs[0]).shape == (1, *inputs[0].shape, TASK.vocab_size)
    assert torch.equal(Pack(models[:1])(inputs[:1]), Pack(models[:1])(inputs[0]))


def test_dropout_differs_between_members():
    block = {"mlp": {"kind": "mlp", "d_ff": 16}, "dropout": 0.5}
    spec = RackSpec(d_model=16, vocab_size=8, stacks=[{"n_blocks": 1, "block": block}])
    models = [spec.build(0) for _ in range(2)]
    first, second = Pack(models)(data()[0][0])
    assert not torch.allclose(first, second)


class Normalised(nn.Module):
    """A model of a caller, with buffers that training changes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TASK.vocab_size, 16)
        self.norm = nn.BatchNorm1d(16)
        self.output = nn.Linear(16, TASK.vocab_size)

    def forward(self, tokens):
        return self.output(self.norm(self.embedding(tokens).cumsum(1).mT).mT)


def test_running_statistics_are_kept():
    batches = data()
    packed = run([TrainState(seeded(Normalised, seed), batches, 1e-2, 0.0) for seed in (0, 1)])
    for seed, single in enumerate(packed):
        (alone,) = run([TrainState(seeded(Normalised, seed), batches, 1e-2, 0.0)])
        assert_same_curves(single, alone)
        torch.testing.assert_close(single.model.norm.running_mean, alone.model.norm.running_mean, rtol=1e-4, atol=1e-4)
        assert single.model.norm.num_batches_tracked == 20
