"""The job of a supernet: what it leaves, how it is interrupted, killed and taken up again."""

import argparse
import json
import os
import signal
import time

import pytest
import torch
import yaml

from configs import ConfigError
from configs.records import read_json
from models import Rack, Supernet
from search.cli.main import add_jobs, main
from search.jobs.supernet import job
from search.jobs.supernet.job import train_rack
from search.jobs.supernet.step import SupernetStep
from search.jobs.supernet.weights import load_supernet
from search.samplers.shared.sampler import placements_of_step
from search.training import checkpoint, loop
from tests.search.cases import FAR_TOO_HIGH
from tests.search.ranks import started
from tests.search.supernets import CPU, supernet_spec, train_into


def timeless(results):
    return {name: value for name, value in results.items() if name not in ("seconds", "peak_bytes", "checksum")}


def history(out):
    return (out / "history.jsonl").read_text()


def weights(out):
    return checkpoint.read(out / "weights.safetensors", CPU)[0]


def assert_same_run(one, other):
    """History and weights to the bit, and results but for the clock."""
    assert history(one) == history(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert timeless(read_json(one / "results.json")) == timeless(read_json(other / "results.json"))


def test_a_run_leaves_weights_history_and_results(tmp_path):
    lines = []
    spec = supernet_spec()
    results = train_into(tmp_path, spec, lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "history.jsonl",
        "results.json",
        "spec.json",
        "weights.safetensors",
    ]
    rows = [json.loads(line) for line in history(tmp_path).splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[-1]["train_loss"] == pytest.approx(sum(results["losses"][8:]) / 4)
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["loss.recall"] / 3 + rows[-1]["loss.copying"] * 2 / 3)
    assert results["tasks"]["copying"] == {"loss": rows[-1]["loss.copying"], "accuracy": rows[-1]["accuracy.copying"]}
    assert len(results["losses"]) == 12
    assert results["losses"][-1] < results["losses"][0]
    assert results["counts"][0] == {"slot": "layer 0", "attention": 4, "gdn": 4, "linear": 4}
    assert (results["status"], results["steps"], results["main"]) == ("finished", 12, "attention*2")
    assert lines[0].startswith("step 4 of 12: training loss ")
    assert " to go" in lines[0]
    assert " to go" not in lines[-1]
    assert results == read_json(tmp_path / "results.json")


def test_the_weights_are_those_that_were_scored_last(tmp_path):
    results = train_into(tmp_path)
    model = load_supernet(tmp_path)
    assert isinstance(model, Supernet)
    assert not model.training
    assert model.active == model.main
    spec = supernet_spec()
    batches = job.Mixture(spec.data, seed=0, device=CPU).evaluation(1, 4)
    with torch.no_grad():
        for task, ((inputs, targets),) in batches.items():
            loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            assert float(loss) == pytest.approx(results["tasks"][task]["loss"], rel=1e-5)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = train_into(tmp_path)
    monkeypatch.setattr(job, "train_supernet_here", lambda *_: pytest.fail("trained"))
    lines = []
    assert train_into(tmp_path, lines=lines) == first
    assert lines == ["all 12 steps are finished"]
    with pytest.raises(ValueError, match="holds the results of another specification"):
        train_into(tmp_path, supernet_spec(seed=1))


def test_a_rack_without_choices_is_trained_by_the_same_job(tmp_path):
    spec = supernet_spec().placed("gdn, attention")
    results = train_rack(spec, tmp_path)
    assert (results["counts"], results["main"], len(results["losses"])) == ([], "", 12)
    assert "sampled_loss" not in results
    assert isinstance(load_supernet(tmp_path), Rack)
    with pytest.raises(ValueError, match="place it first"):
        train_rack(supernet_spec(), tmp_path / "other")


def test_placements_and_weights_are_those_of_the_seed(tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train_into(tmp_path / name, supernet_spec(seed=seed, n_steps=4))
    assert_same_run(tmp_path / "one", tmp_path / "again")
    assert history(tmp_path / "one") != history(tmp_path / "other")


def test_a_trained_rack_is_a_start_and_each_mixers_start_is_told(tmp_path):
    trained = train_rack(supernet_spec(n_steps=60).placed("all:attention"), tmp_path / "rack")
    lines, keys = [], {"initialise_from": str(tmp_path / "rack"), "n_steps": 4, "lr": 1e-9}
    results = train_into(tmp_path / "supernet", supernet_spec(**keys), lines)
    losses = results["initial_losses"]
    assert losses["attention"] == pytest.approx({task: found["loss"] for task, found in trained["tasks"].items()}, rel=1e-5)
    assert results["loss"] == pytest.approx(trained["loss"], rel=1e-4)
    assert losses.keys() == {"attention", "gdn", "linear"}
    assert results["starts"][0]["attention"] == "trained"
    assert results["starts"][1]["gdn"].startswith("from the attention: copied ")
    assert f"initial loss of all:attention: recall {losses['attention']['recall']:.4f}" in "\n".join(lines)
    again = train_into(tmp_path / "again", supernet_spec(**{**keys, "initialise_from": str(tmp_path / "supernet")}))
    assert again["initial_losses"]["attention"] == pytest.approx(losses["attention"], rel=1e-4)
    assert train_into(tmp_path / "fresh")["initial_losses"] == {}


def test_a_start_that_does_not_fit_is_a_readable_error(tmp_path):
    train_rack(supernet_spec(n_steps=1).placed("all:gdn"), tmp_path / "rack")
    with pytest.raises(ValueError, match=r"initialise_from: .*rack: no rack of the main placement: "):
        train_into(tmp_path / "supernet", supernet_spec(initialise_from=str(tmp_path / "rack")))
    with pytest.raises(ValueError, match="none: no finished supernet run is there"):
        train_into(tmp_path / "supernet", supernet_spec(initialise_from=str(tmp_path / "none")))
    assert not (tmp_path / "supernet").exists()  # the corrected one may have it


def test_a_rack_of_a_placement_starts_from_it_and_may_have_adapters_besides(tmp_path):
    space = supernet_spec(n_steps=2)
    train_into(tmp_path / "supernet", space)
    start = {"initialise_from": str(tmp_path / "supernet"), "initial_placement": "gdn, attention"}

    def placed(place, trains, **said):
        rack = {**space.rack.place(place).to_dict(), **said}
        alone = {"sampler": None, "rack": rack, "trains": trains, **start}
        return type(space).model_validate({**space.to_dict(), **alone})

    glob = "stacks.0.blocks.0.mixer.query"
    adapted = placed("gdn, attention", [f"{glob}.adapters.*"], parameters={glob: {"lora": {"rank": 2}}})
    train_rack(adapted, tmp_path / "adapted")
    before = load_supernet(tmp_path / "supernet").extract("gdn, attention").state_dict()
    after = load_supernet(tmp_path / "adapted").state_dict()
    assert after.keys() - before.keys() == {f"{glob}.adapters.lora.{side}" for side in ("down", "up")}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after[f"{glob}.adapters.lora.up"].abs().sum() > 0
    with pytest.raises(ConfigError, match=r"its placement gdn, attention is another rack: .*A_log is \[2\] there, missing here"):
        train_rack(placed("linear, attention", ["*"], lora={"rank": 2}), tmp_path / "other")


def test_the_start_is_told_after_an_interruption_too(tmp_path):
    train_rack(supernet_spec(n_steps=4).placed("all:attention"), tmp_path / "rack")
    spec = supernet_spec(initialise_from=str(tmp_path / "rack"))
    whole = train_into(tmp_path / "whole", spec)
    with pytest.MonkeyPatch.context() as patch:
        stop_before(5, interrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            train_into(tmp_path / "stopped", spec)
    (tmp_path / "rack").rename(tmp_path / "gone")
    assert timeless(train_into(tmp_path / "stopped", spec)) == timeless(whole)


class KilledError(Exception):
    """Stands for a kill."""


def stop_before(step, how, monkeypatch):
    """Call `how` when that step is about to be trained; returns the placements that are trained."""
    trained, original = [], SupernetStep.__call__

    def gradients(self, pack, running, now):
        if now == step:
            how()
        trained.append((now, placements_of_step(self.sampler, self.spec.seed, now)))
        return original(self, pack, running, now)

    monkeypatch.setattr(SupernetStep, "__call__", gradients)
    return trained


def raise_killed():
    raise KilledError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Twelve steps without a disturbance."""
    out = tmp_path_factory.mktemp("whole")
    train_into(out)
    return out


def interrupt():
    signal.raise_signal(signal.SIGINT)


def terminate():
    signal.raise_signal(signal.SIGTERM)


DROPPING_OUT = supernet_spec(block={**supernet_spec().rack.stacks[0].block.to_dict(), "dropout": 0.2})


@pytest.fixture(scope="module")
def whole_with_dropout(tmp_path_factory):
    """Twelve steps that need the generator's state to be repeated."""
    out = tmp_path_factory.mktemp("whole_with_dropout")
    train_into(out, DROPPING_OUT)
    return out


@pytest.mark.parametrize(
    ("step", "stop"), [(0, interrupt), (2, terminate), (6, interrupt), (7, terminate), (7, interrupt), (10, terminate)]
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, whole_with_dropout, step, stop):
    """In and at the end of the steps between two evaluations; the step under way is finished, nothing is lost."""
    spec, out, lines = DROPPING_OUT, tmp_path / "stopped", []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        stop_before(step, stop, patch)
        with pytest.raises(KeyboardInterrupt):
            train_into(out, spec)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    tensors, state = checkpoint.read(out / "checkpoint.safetensors", CPU)
    assert state["step"] == step + 1
    assert len(tensors["0.losses"]) == step + 1
    train_into(out, spec, lines)
    assert lines[0] == f"going on from step {step + 1} of 12"
    assert_same_run(whole_with_dropout, out)


@pytest.mark.parametrize(("every", "step", "resumed"), [(3, 8, 6), (1, 5, 5), (4, 11, 8), (5, 3, 0)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, whole, every, step, resumed):
    """What the kill left behind the checkpoint, in the history too, is made again."""
    spec, out = supernet_spec(checkpoint_every=every), tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        stop_before(step, raise_killed, patch)
        with pytest.raises(KilledError):
            train_into(out, spec)
    with pytest.MonkeyPatch.context() as patch:
        trained = stop_before(-1, raise_killed, patch)
        train_into(out, spec)
    assert [now for now, _ in trained] == list(range(resumed, 12))
    sampler = spec.make_sampler()
    assert [placements for _, placements in trained] == [placements_of_step(sampler, 0, now) for now in range(resumed, 12)]
    assert_same_run(whole, out)


@pytest.mark.parametrize("before", ["save_weights", "write_outcome"])
def test_a_kill_between_the_last_step_and_the_results_costs_no_step(tmp_path, monkeypatch, whole, before):
    out, spec = tmp_path / "killed", supernet_spec(checkpoint_every=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, before, lambda *_: raise_killed())
        with pytest.raises(KilledError):
            train_into(out, spec)
    trained = stop_before(-1, raise_killed, monkeypatch)
    train_into(out, spec)
    assert trained == []
    assert not (out / "checkpoint.safetensors").exists()
    assert_same_run(whole, out)


def test_without_a_number_of_steps_checkpoints_go_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    stop_before(9, raise_killed, monkeypatch)
    with pytest.raises(KilledError):
        train_into(tmp_path)
    assert checkpoint.read(tmp_path / "checkpoint.safetensors", CPU)[1]["step"] == 8


def test_a_supernet_keeps_no_second_copy_of_its_weights(tmp_path, monkeypatch):
    stop_before(9, interrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_into(tmp_path)
    tensors, _ = checkpoint.read(tmp_path / "checkpoint.safetensors", CPU)
    assert not any(".best." in name for name in tensors)


def test_a_run_that_diverges_says_so(tmp_path):
    results = train_into(tmp_path, supernet_spec(lr=FAR_TOO_HIGH, n_steps=40))
    assert results["status"] == "diverged"
    assert results["steps"] == 4


def test_the_stop_rule_holds_for_the_main_placement(tmp_path):
    results = train_into(tmp_path, supernet_spec(n_steps=40, lr=1e-9, train={"device": "cpu", "patience": 2}))
    assert (results["status"], results["steps"]) == ("stopped", 12)


def until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def train_and_wait(out, reached, sent):
    """The job in a process of its own; step 6 waits until the signal has been sent, which so comes in the middle of a run."""

    def wait():
        reached.touch()
        until(sent.exists)

    lines = []
    with pytest.MonkeyPatch.context() as patch:
        stop_before(6, wait, patch)
        try:
            train_into(out, supernet_spec(checkpoint_every=3), lines)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    sent.write_text(lines[0])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "kept"), [(signal.SIGKILL, -signal.SIGKILL, 6), (signal.SIGTERM, 130, 7)])
def test_a_process_that_is_killed_goes_on_in_the_next(tmp_path, whole, number, status, kept):
    out, *files = (tmp_path / name for name in ("killed", "reached", "sent"))
    reached, sent = files
    process = started(train_and_wait, out, *files)
    until(reached.exists)
    os.kill(process.pid, number)
    sent.touch()
    process.join()
    assert process.exitcode == status
    assert checkpoint.read(out / "checkpoint.safetensors", CPU)[1]["step"] == kept
    process = started(train_and_wait, out, *files)
    process.join()
    assert process.exitcode == 0
    assert sent.read_text() == f"going on from step {kept} of 12"
    assert_same_run(whole, out)


@pytest.mark.parametrize("name", ["attention", "linear"])
def test_a_kernel_that_is_not_installed_is_one_message_and_status_two(name, tmp_path, monkeypatch, capsys):
    kernel = {"attention": "flash-attn", "linear": "fla"}[name]
    monkeypatch.setattr("models.ops.kernels.package.Package.missing", lambda _: "not a package of this machine")
    path, out = tmp_path / "supernet.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(supernet_spec().to_dict()), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_jobs(parser.add_subparsers(dest="job"))
    wrong = f"rack.stacks[0].block.mixer.mixers.{name}.kernel={kernel}"
    assert main(parser, "search.jobs.in_process:HERE", ["supernet", str(path), wrong, f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert error.startswith(f"kernel = {kernel}: not a package of this machine")
    assert not out.exists()


def test_weights_of_another_version_are_refused(tmp_path):
    spec = supernet_spec()
    for saved, version in ((spec.to_dict(), 1), ({**spec.to_dict(), "spec_version": 9}, 9)):
        checkpoint.save(tmp_path / "weights.safetensors", {}, {"spec": saved, "step": 1})
        with pytest.raises(ConfigError, match=rf"weights\.safetensors: saved in version {version} of the format, but"):
            load_supernet(tmp_path)
