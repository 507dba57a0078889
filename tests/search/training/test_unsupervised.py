"""Steps whose batch has no supervised position: they move nothing, and count as nothing, not as a loss of 0."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from configs import ConfigError
from configs.local_losses import LocalLossSpec
from search.jobs.progressive.training.batches import GrowthBatches, StageTime
from search.jobs.supernet.step import SupernetStep
from search.jobs.supernet.teacher import Teacher
from search.runs.report import HISTORY, Report
from search.training import metrics
from search.training.batches import EpochBatches
from search.training.checkpoint import Checkpoint
from search.training.local_losses.model import LocalUnits
from search.training.local_losses.step import LocalLosses
from search.training.loop import train
from search.training.mixture import Mixture
from search.training.ranks import Ranks
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tasks import IGNORED, Examples, draw
from tasks.objectives import OBJECTIVES
from tasks.samples.samples import ArraySamples
from tests.search.cases import CPU, TASK, data, evaluate_on, member, rack_spec, run, same, weights
from tests.search.growths import grow_here, growth_spec, rows
from tests.search.supernets import supernet_member, supernet_spec


class Silenced:
    """Batches of which some steps ask nothing."""

    def __init__(self, batches, silent):
        self.batches, self.silent = batches, silent

    def __getitem__(self, step):
        batch = self.batches[step]
        if step not in self.silent:
            return batch
        targets = torch.full_like(batch[1], IGNORED)
        if not hasattr(batch, "weights"):
            return batch[0], targets
        return batch._replace(targets=targets, weights=torch.zeros_like(batch.weights))


def supernet_run(silent=(), **keys):
    spec = supernet_spec(weight_decay=1.0, **keys)
    single = supernet_member(spec)
    single.batches = Silenced(single.batches, silent)
    teacher = spec.teacher and Teacher(spec.teacher, single.model, CPU)
    return single, SupernetStep(spec, Ranks(), teacher)


def local_run(silent=(), **keys):
    model = LocalUnits(rack_spec().build(0), LocalLossSpec(**keys), unit="block")
    single = TrainState(model, Silenced(data(), silent), 1e-2, 1.0)
    return single, LocalLosses(model, n_steps=6)


def plain_run(silent=()):
    return member(batches=Silenced(data(), silent), lr=1e-2, weight_decay=1.0), None


WAYS = {
    "cross entropy": plain_run,
    "a supernet": supernet_run,
    "micro-batches": lambda silent: supernet_run(silent, accumulate=3, placements_per_step=2),
    "distillation": lambda silent: supernet_run(silent, teacher={"source": "main", "hidden_weight": 1.0}),
    "local losses": local_run,
    "one after another": lambda silent: local_run(silent, schedule="sequential"),
}


def evaluated(pack, running):
    del pack
    return {name: torch.full((len(running),), 1.0) for name in ("loss", "accuracy")}


def trained(way, silent, n_steps=6):
    """The member, and its weights after each step."""
    single, gradients = WAYS[way](silent)
    after = [weights(single)]

    def stepped(_):
        after.append(weights(single))
        return True

    spec = TrainSpec(device="cpu", grad_clip=1.0)
    train([single], spec, n_steps=n_steps, eval_every=3, evaluate=evaluated, gradients=gradients, on_step=stepped)
    return single, after


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_asks_nothing_moves_nothing_and_has_no_loss(way):
    """Not by decay, and not by the momentum of the steps before."""
    single, after = trained(way, (2, 3))
    moved = [not same(first, second) for first, second in itertools.pairwise(after)]
    assert moved == [True, True, False, False, True, True]
    assert [math.isnan(loss) for loss in single.losses] == [False, False, True, True, False, False]
    assert single.unsupervised == [2, 3]
    first, second = single.history
    assert first["train_loss"] == pytest.approx(sum(single.losses[:2]) / 2)
    assert second["train_loss"] == pytest.approx(sum(single.losses[4:]) / 2)
    assert first["unsupervised_steps"] == second["unsupervised_steps"] == 1
    assert single.status == "finished"


@pytest.mark.parametrize("way", WAYS)
def test_a_row_in_which_no_step_asked_anything_has_no_training_loss_and_is_no_divergence(way):
    single, _ = trained(way, (0, 1, 2))
    assert math.isnan(single.history[0]["train_loss"])
    assert single.history[0]["unsupervised_steps"] == 3
    assert "unsupervised_steps" not in single.history[1]
    assert single.status == "finished"


def test_a_loss_that_is_no_number_is_a_divergence_still():
    single, _ = plain_run((1,))
    with torch.no_grad():
        next(single.model.parameters()).fill_(math.nan)
    run([single], n_steps=3, eval_every=3, evaluate=evaluated)
    assert single.status == "diverged"


def test_members_of_a_pack_are_silent_by_themselves():
    silenced = [Silenced(data(seed=seed), silent) for seed, silent in ((0, (1,)), (1, ()))]
    packed = run([member(batches=batches, lr=1e-2, weight_decay=0.1) for batches in silenced], n_steps=3, eval_every=3)
    assert [single.unsupervised for single in packed] == [[1], []]
    for batches, single in zip(silenced, packed, strict=True):
        (alone,) = run([member(batches=batches, lr=1e-2, weight_decay=0.1)], n_steps=3, eval_every=3)
        assert single.history[0]["train_loss"] == pytest.approx(alone.history[0]["train_loss"], rel=1e-4)
        for name, tensor in alone.model.state_dict().items():
            torch.testing.assert_close(single.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_knows_which_steps_asked_nothing(tmp_path):
    def begun():
        return member(batches=Silenced(data(), (1, 4)), lr=1e-2)

    (whole,) = run([begun()], n_steps=6, eval_every=6)
    kept, first, spec = Checkpoint(tmp_path / "checkpoint", "a run"), begun(), TrainSpec(device="cpu")
    evaluate, options = evaluate_on(data(split="test")), {"n_steps": 6, "eval_every": 6, "checkpoint": kept}
    train([first], spec, evaluate=evaluate, on_step=lambda step: step < 3, **options)
    second = begun()
    train([second], spec, evaluate=evaluate, **options)
    assert second.unsupervised == whole.unsupervised == [1, 4]
    assert second.history == whole.history


def test_an_epoch_knows_on_the_host_which_batches_ask_something():
    examples = draw(TASK, 6, seed=0, split="train")
    targets = examples.targets.copy()
    targets[1:] = IGNORED
    batches = EpochBatches(Examples(inputs=examples.inputs, targets=targets), 2, seed=0, device=CPU)
    assert {batches.asks_at(step) for step in range(9)} == {False, True}
    for step in range(9):
        assert batches.asks_at(step) == bool((batches[step][1] != IGNORED).any())


@pytest.mark.parametrize("silent", [("copying",), ("recall",), ("recall", "copying")])
def test_a_task_that_asks_nothing_gives_its_share_to_the_others(silent, monkeypatch):
    spec, drawn = supernet_spec(), Mixture._drawn
    expected = Mixture(spec.data, seed=0, device=CPU)[0]

    def without(self, name, step):
        examples = drawn(self, name, step)
        return dataclasses.replace(examples, targets=np.full_like(examples.targets, IGNORED)) if name in silent else examples

    monkeypatch.setattr(Mixture, "_drawn", without)
    mixture = Mixture(spec.data, seed=0, device=CPU)
    assert mixture.asks_at(0) is (len(silent) == 1)
    batch = mixture[0]
    assert float(batch.weights.sum()) == pytest.approx(2 - len(silent))
    assert torch.equal(batch.weights > 0, (expected.weights > 0) & (batch.targets != IGNORED))


def test_a_held_out_batch_that_asks_nothing_counts_in_no_mean():
    model, batches = rack_spec().build(0).eval(), list(data(split="test").in_order())
    silent = (batches[0][0], torch.full_like(batches[0][1], IGNORED))
    found, expected = (metrics.evaluate(lambda inputs: model(inputs)[None], each) for each in ([silent, *batches], batches))
    assert {name: float(value) for name, value in found.items()} == {name: float(value) for name, value in expected.items()}


SHORT = [np.arange(length) % 5 for length in (1, 2, 3, 1, 2, 22)]


def masked(n_ranks=1, rank=0, **keys):
    """Few tokens, of which few are masked: most batches ask nothing."""
    tokens, mask = np.zeros((6, 22), dtype=np.int64), np.zeros((6, 22), dtype=bool)
    for row, text in enumerate(SHORT):
        tokens[row, : len(text)], mask[row, : len(text)] = text, True
    objective = OBJECTIVES["mlm"](vocab_size=5, **{"mask_ratio": 0.05, **keys})
    samples = ArraySamples(tokens, vocab_size=5, attention_mask=mask)
    options = {"stage": 0, "time": StageTime(), "batch_size": 3, "seed": 0, "device": CPU}
    return GrowthBatches(samples, objective, rank=rank, n_ranks=n_ranks, **options)


def test_ranks_agree_on_what_the_whole_batch_asks():
    for step in range(20):
        whole, parts = masked()[step], [masked(n_ranks=3, rank=rank) for rank in range(3)]
        asks = bool((whole.targets != IGNORED).any())
        assert {part.asks_at(step) for part in parts} == {asks}
        assert float(sum(part[step].weights.sum() for part in parts)) == pytest.approx(float(asks))


def test_held_out_samples_that_are_asked_nothing_are_refused():
    with pytest.raises(ConfigError, match="none of the 6 held-out samples has a supervised position"):
        masked(mask_ratio=0.0).evaluation(2, 3)


@pytest.mark.parametrize("keys", [{}, {"training_architecture": "blockwise", "growth": {"enabled": False}}])
def test_a_growth_on_few_masked_tokens_reports_the_mean_of_the_steps_that_ask(keys, tmp_path):
    objective = {"kind": "mlm", "mask_ratio": 0.01}
    lines = []
    spec = growth_spec(objective=objective, **{"data": {**growth_spec().to_dict()["data"], "batch_size": 2}, **keys})
    grow_here(spec, tmp_path, lines)
    row = rows(tmp_path)[0]
    known = [loss for loss in row["losses"] if loss is not None]
    assert 0 < len(known) < len(row["losses"])
    assert row["unsupervised_steps"] == len(row["losses"]) - len(known)
    assert min(known) > 0.5
    assert any("had no supervised position" in line for line in lines)


def test_what_a_row_without_a_training_loss_says(tmp_path):
    lines = []
    report = Report(tmp_path, 4, lines.append, is_main=True)
    row = {"step": 2, "train_loss": math.nan, "unsupervised_steps": 2, "loss": 1.0, "accuracy": 0.5}
    report.evaluated(TrainState(torch.nn.Linear(1, 1), data(), 0.1, 0.0, history=[row]), row)
    assert "no training loss (2 step(s) had no supervised position), held-out loss 1.0000" in lines[0]
    assert json.loads((tmp_path / HISTORY).read_text())["train_loss"] is None
