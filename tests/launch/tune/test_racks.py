"""Many racks on Ray: the results of training them here, failures by name, nothing trained twice."""

from pathlib import Path

import pytest

from configs import ConfigError
from configs.records import read_json, write_json
from launch.tune.racks import train_racks_on_ray
from search.jobs.supernet.job import train_rack
from search.runs.workers import WorkersError
from tests.search.supernets import BLOCK, supernet_spec

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

NOT_COMPARED = ("seconds", "peak_bytes", "hardware")


def racks(**changes):
    spec = supernet_spec(**changes)
    return {"all": spec.placed("all:gdn"), "mixed": spec.placed("attention, linear")}


def numbers(row):
    return {name: value for name, value in row.items() if name not in NOT_COMPARED}


def test_the_results_are_those_of_training_here_and_finished_racks_are_not_trained_again(tmp_path, capsys):
    runs = racks()
    here = {name: train_rack(spec, tmp_path / "here" / name) for name, spec in runs.items()}
    there = train_racks_on_ray(runs, tmp_path / "there")
    assert list(there) == list(runs)
    assert {name: numbers(row) for name, row in there.items()} == {name: numbers(row) for name, row in here.items()}
    for name, row in there.items():
        assert read_json(tmp_path / "there" / name / "results.json") == row
    assert len(list(tmp_path.glob("there/tune/session-1/*/events.out.tfevents.*"))) == 2
    assert "[2/2]" in capsys.readouterr().out

    def weights():
        return {path: path.stat().st_mtime_ns for path in Path(tmp_path / "there").glob("*/weights.safetensors")}

    before = weights()
    more = {**runs, "linear": supernet_spec().placed("all:linear")}
    again = train_racks_on_ray(more, tmp_path / "there")
    assert list(again) == [*runs, "linear"]
    assert {name: again[name] for name in runs} == there
    assert {path: weights()[path] for path in before} == before
    told = capsys.readouterr().out
    assert "going on: 2 of 3 racks are trained" in told
    assert "[3/3] linear: " in told


def test_racks_that_fail_or_diverge_are_reported_by_name_and_the_others_go_on(tmp_path):
    wild = supernet_spec(lr=1e20, n_steps=8, workers={"max_failures": 0}).placed("all:gdn")
    runs = {**racks(workers={"max_failures": 0}), "wild": wild}
    (tmp_path / "all").mkdir()
    (tmp_path / "all/checkpoint.safetensors").mkdir()  # in the way of the state during training
    found = train_racks_on_ray(runs, tmp_path)
    assert found["mixed"]["status"] == "finished"
    assert list(found["all"]) == ["error"]
    assert "checkpoint.safetensors" in found["all"]["error"]
    assert list(found["wild"]) == ["error"]
    assert found["wild"]["error"].startswith("diverged: at step 4")
    (tmp_path / "all/checkpoint.safetensors").rmdir()
    assert train_racks_on_ray({"all": runs["all"]}, tmp_path)["all"]["status"] == "finished"


def test_racks_of_several_workers_are_trained_by_train_one_after_the_other(tmp_path, monkeypatch, capsys):
    runs = {**racks(workers={"n": 2}), "small": supernet_spec().placed("all:linear")}
    trained = []

    def train(spec, out, say):
        trained.append(out.name)
        say("step 4 of 12")
        if out.name == "mixed":
            raise WorkersError("out of memory")
        return train_rack(spec, out)

    monkeypatch.setattr("launch.tune.racks.train_on_ray", train)
    found = train_racks_on_ray(runs, tmp_path)
    assert trained == ["all", "mixed"]
    assert (found["all"]["status"], found["mixed"], found["small"]["status"]) == (
        "finished",
        {"error": "out of memory"},
        "finished",
    )
    assert "all: step 4 of 12" in capsys.readouterr().out


def test_a_folder_of_another_run_is_refused(tmp_path):
    runs = {"all": racks()["all"]}
    (tmp_path / "all").mkdir()
    write_json(tmp_path / "all/spec.json", {**runs["all"].saved(), "n_steps": 99})
    with pytest.raises(ConfigError, match="another specification"):
        train_racks_on_ray(runs, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process holds")
def test_a_worker_holds_no_more_for_the_last_rack_than_for_the_first(tmp_path):
    task = {"kind": "in_context_recall", "vocab_size": 16, "seq_len": 16}
    keys = {
        "rack": {"d_model": 256, "vocab_size": 24576, "tie_embeddings": True, "stacks": [{"n_blocks": 1, "block": BLOCK}]},
        "data": {"tasks": {"recall": {"task": task}}, "batch_size": 4},
        "n_steps": 2,
    }
    runs = {f"seed {seed}": supernet_spec(**keys, seed=seed).placed("all:linear") for seed in range(8)}
    found = train_racks_on_ray(runs, tmp_path)
    peaks = sorted(row["peak_bytes"] for row in found.values())
    assert peaks[-1] - peaks[0] < 100e6  # the weights of one, and their moments, are 75 MB
