"""A growth that is killed or interrupted, at any moment: the same call goes on to the same weights."""

import os
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from configs import ConfigError
from configs.records import read_json
from search.jobs.progressive import stage as stage_module
from search.jobs.progressive import stages as stages_module
from search.jobs.progressive.fields import GrowthDataSpec
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.training.trunk_cache import TrunkCache
from search.training.ranks import Ranks
from tests.search.growths import AHEAD, STACK, grow_here, growth_spec, rows, same_bits, stages_here, state
from tests.search.ranks import on_ranks

SPECS = {
    "memory": {},
    "files": {"objective": "mlm", "block": {**AHEAD, "dropout": 0.2}, "growth": {"cache_mode": "arrow"}},
    "adapters": {"growth": {"trunk_strategy": "qlora", "progressive_qlora_rank": 2, "target_stacks": 2, "joint_tuning_steps": 4}},
}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def after(function):
    """A function, and then no process any more."""

    def run(*arguments, **options):
        function(*arguments, **options)
        kill()

    return run


def grow_until(raw, out, moment):
    """In a process of its own: grow until a moment, and be killed there."""
    torch.set_num_threads(1)
    stepped, rows_of = stage_module.StageRun._stepped, TrunkCache._rows

    def step(self, number):
        goes_on = stepped(self, number)
        if (self.stage.index + 1, number) == moment:
            kill()
        return goes_on

    def some_rows(self):
        yield next(rows_of(self))
        if moment == "filling":
            kill()

    stage_module.StageRun._stepped = step
    if moment == "filling":
        TrunkCache._rows = some_rows
    elif moment == "before the row":
        stages_module.save_stage = after(stages_module.save_stage)
    elif moment == "after the row":
        stages_module.write_json = after(stages_module.write_json)
    elif moment == "before the summary":
        stages_module.write_results = after(lambda *_: None)
    stages_here(ProgressiveSpec.model_validate(raw), out)


def grow_and_be_killed(spec, out, moment):
    """From outside: a process that does not come to its end."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["search.jobs.progressive.job"])
    process = context.Process(target=grow_until, args=(spec.to_dict(), out, moment), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def numbers(row):
    """What of a row is the same whoever has computed which part of it."""
    names = ("stage", "uid", "status", "steps", "loss_before", "loss_grown", "loss", "accuracy", "train_loss", "losses")
    return {name: row[name] for name in names}


def assert_same_run(first: Path, second: Path):
    assert list(map(numbers, rows(first))) == list(map(numbers, rows(second)))
    for number in range(1, len(rows(first)) + 1):
        assert same_bits(state(first, number), state(second, number))
        history = Path(f"stages/{number:02d}/history.jsonl")
        assert (first / history).read_text() == (second / history).read_text()
    summaries = [read_json(out / "results.json") for out in (first, second)]
    assert summaries[0]["loss"] == summaries[1]["loss"]
    assert not list(first.rglob("checkpoint.*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("memory", [(1, 1), "after the row", (2, 3)]),
        ("files", ["before the row", "filling", (3, 6)]),
        ("adapters", [(2, 5), "before the summary"]),
    ],
)
def test_killed_again_and_again_it_ends_as_if_undisturbed(tmp_path, name, moments):
    """Without a checkpoint, with one every two steps, and where one is of the last step."""
    spec = growth_spec(**SPECS[name], checkpoint_every=2)
    for moment in moments:
        grow_and_be_killed(spec, tmp_path / "killed", moment)
    stages_here(spec, tmp_path / "killed")
    stages_here(growth_spec(**SPECS[name]), tmp_path / "undisturbed")
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


def interrupt_at(monkeypatch, stage, step):
    """Ctrl-C in the middle of a step."""

    def gradients(self, pack, running, number):
        if (running[0].batches.stage + 1, number + 1) == (stage, step):
            signal.raise_signal(signal.SIGINT)
        return compute(self, pack, running, number)

    compute = stage_module.GrowthStep.__call__
    monkeypatch.setattr(stage_module.GrowthStep, "__call__", gradients)


def test_an_interrupt_ends_with_the_step_and_loses_none(tmp_path, monkeypatch):
    spec, lines = growth_spec(), []
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage=2, step=4)
        with pytest.raises(KeyboardInterrupt):
            grow_here(spec, tmp_path / "cut")
    assert len(rows(tmp_path / "cut")) == 1
    assert grow_here(spec, tmp_path / "cut", lines) == 0
    assert "stage 2 of 3: going on from step 4 of 6" in lines
    stages_here(spec, tmp_path / "whole")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("keys", [{}, {"candidates": {"one": STACK, "two": STACK}}])
def test_an_interrupt_in_the_last_step_of_a_stage_is_not_forgotten(tmp_path, monkeypatch, keys):
    interrupt_at(monkeypatch, stage=1, step=6)
    with pytest.raises(KeyboardInterrupt):
        grow_here(growth_spec(**keys), tmp_path)
    assert len(rows(tmp_path)) == 1
    assert not (tmp_path / "stages/02").exists()


def test_a_scale_of_losses_goes_on_where_it_stood(tmp_path, monkeypatch):
    spec = growth_spec(growth={"new_stack_precision": "half", "target_stacks": 2})
    monkeypatch.setattr("search.jobs.progressive.training.gradients.STEPS_BEFORE_DOUBLING", 2)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage=2, step=3)
        with pytest.raises(KeyboardInterrupt):
            stages_here(spec, tmp_path / "cut")
    stages_here(spec, tmp_path / "cut")
    stages_here(spec, tmp_path / "whole")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(("stage", "step"), [(2, 3), (1, 6)])
def test_data_that_have_changed_meanwhile_are_refused(tmp_path, monkeypatch, stage, step):
    """In the middle of a stage, and between two."""
    spec = growth_spec()
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage=stage, step=step)
        with pytest.raises(KeyboardInterrupt):
            stages_here(spec, tmp_path)
    samples = GrowthDataSpec.samples
    monkeypatch.setattr(GrowthDataSpec, "samples", lambda self, seed: samples(self, seed + 1))
    with pytest.raises(ConfigError, match="the data have changed since"):
        stages_here(spec, tmp_path)
    assert len(rows(tmp_path)) == 1


def test_a_folder_of_another_growth_is_refused_and_how_it_runs_may_change(tmp_path):
    spec = growth_spec(growth={"target_stacks": 2})
    grow_here(spec, tmp_path)
    with pytest.raises(ConfigError, match=r"another specification \(growth changed\)"):
        grow_here(growth_spec(), tmp_path)
    assert grow_here(growth_spec(growth={"target_stacks": 2}, checkpoint_every=2, workers={"n": 2}), tmp_path) == 0


# Several processes


def grow_as_rank(raw, out):
    lines = []
    stages_module.run_stages(ProgressiveSpec.model_validate(raw), out, lines.append, ranks=Ranks())
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("growth", [{"cache_mode": "arrow"}, {"trunk_strategy": "qlora", "progressive_qlora_rank": 2}])
def test_two_processes_are_one(tmp_path, growth):
    train = {"device": "cpu", "eps": 1e-3}  # far above what rounding leaves in gradients
    spec = growth_spec(objective="mlm", block=AHEAD, growth=growth, lr=1e-3, n_steps=12, train=train)
    first, second = on_ranks(grow_as_rank, 2, tmp_path / "ranks", spec.to_dict(), tmp_path / "two")
    assert first
    assert not second  # the main one talks
    stages_here(spec, tmp_path / "one")
    for ours, theirs in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-5)
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs.get("cache_hit_rate") == ours.get("cache_hit_rate")
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].float(), tensor.float(), rtol=1e-5, atol=1e-5)


def grow_on_other_data(raw, out):
    ranks = Ranks()
    samples = GrowthDataSpec.samples
    GrowthDataSpec.samples = lambda self, seed: samples(self, seed + ranks.rank)
    try:
        stages_module.run_stages(ProgressiveSpec.model_validate(raw), out, lambda _: None, ranks=ranks)
    except RuntimeError as error:
        return str(error)


@pytest.mark.slow
def test_processes_that_have_other_data_do_not_train_together(tmp_path):
    told = on_ranks(grow_on_other_data, 2, tmp_path / "ranks", growth_spec().to_dict(), tmp_path / "out")
    assert all(text.startswith("ranks disagree: rank 0 has data ") for text in told)


def grow_into_a_refusal(raw, out):
    with pytest.raises(ConfigError) as raised:
        grow_as_rank(raw, out)
    return str(raised.value)


@pytest.mark.slow
def test_what_the_main_process_is_refused_all_are_told(tmp_path):
    """It alone writes the cache: the others would wait for it."""
    spec = growth_spec(growth={"cache_mode": "arrow", "cache_bytes": 1000})
    told = on_ranks(grow_into_a_refusal, 2, tmp_path / "ranks", spec.to_dict(), tmp_path / "out")
    assert told[0] == told[1]
    assert "over the limit of 1000 bytes" in told[0]
