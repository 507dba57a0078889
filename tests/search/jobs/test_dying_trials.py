"""Trials that die, leave or hang: each is its own failure, the others go on, and the exit status says so."""

import faulthandler
import os

import pytest
import torch._dynamo  # noqa: F401 - the first optimizer would import it, in each fork anew
from safetensors.torch import load_file

import search
from configs import ConfigError
from search.jobs import in_process
from search.jobs.in_process import HERE
from search.jobs.mad import job
from search.jobs.pipeline.spec import RetrainSpec
from search.jobs.progressive.fields import ChoiceSpec
from search.runs.isolation import IsolationSpec, marker
from search.runs.run_folder import TrialLog
from tests.search import dying
from tests.search.cases import mad_spec, same, timeless
from tests.search.dying import ENDS, last_line
from tests.search.growths import STACK, grow_here, growth_spec
from tests.search.supernets import supernet_spec

ISOLATED = IsolationSpec(isolate_trials=True)


def rows_by_architecture(out):
    return {row["architecture"]: row for row in TrialLog(out / "trials.jsonl").rows.values()}


def doomed(*names, **keys):
    return mad_spec(architectures=dict.fromkeys(names), weight_decays=[0.0], epochs=1, **keys)


def test_each_trial_of_the_suite_comes_to_its_own_end(tmp_path):
    names = ["raise", "exit-0", "leave-0", "signal", "child", "usual"]
    assert job.run(doomed(*names, isolate_trials=True), tmp_path, make_model=dying.make_model) == 1
    rows = rows_by_architecture(tmp_path)
    assert {name: last_line(rows[name]["error"]) for name in names[:-1]} == {name: ENDS[name][1] for name in names[:-1]}
    assert {row["status"] for row in rows.values() if row["error"]} == {"failed"}
    assert rows["usual"]["status"] == "finished"


def test_one_that_takes_too_long_is_ended_and_the_next_one_starts(tmp_path, monkeypatch):
    assert job.run(doomed("loop", "exit-0", trial_timeout=2.0), tmp_path / "mad", make_model=dying.make_model) == 1
    rows = rows_by_architecture(tmp_path / "mad")
    assert {name: last_line(row["error"]) for name, row in rows.items()} == {name: ENDS[name][1] for name in ("loop", "exit-0")}
    monkeypatch.setattr(in_process, "_rack", dying.rack)
    runs = {name: supernet_spec().placed("all:linear") for name in ("hang", "raise")}
    found = HERE.train_racks(runs, tmp_path / "racks", RetrainSpec(trial_timeout=2.0))
    assert {name: last_line(row["error"]) for name, row in found.items()} == {name: ENDS[name][1] for name in runs}


def test_of_a_pack_that_dies_the_others_train_one_by_one(tmp_path):
    spec = mad_spec(architectures={"mine": None}, lrs=[1e-3, 2e-3], packing="always", weight_decays=[0.0], isolate_trials=True)
    assert job.run(spec, tmp_path, make_model=dying.model_but_of_a_rate) == 1
    rows = {row["lr"]: row for row in TrialLog(tmp_path / "trials.jsonl").rows.values()}
    assert rows[1e-3]["status"] == "finished"
    assert last_line(rows[2e-3]["error"]) == ENDS["leave-0"][1]


def test_the_process_that_died_of_a_trial_does_not_die_of_it_again(tmp_path):
    spec = doomed("first", "signal", "leave-0", "last")
    for number in range(2):  # either kills the run once
        child = os.fork()
        if not child:
            faulthandler.disable()
            try:
                job.run(spec, tmp_path, make_model=dying.make_model)
            finally:
                os._exit(70)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (-11, 0)[number]
    assert len(list(tmp_path.glob(".running-*"))) == 2
    assert job.run(spec, tmp_path, make_model=dying.make_model) == 1
    rows = rows_by_architecture(tmp_path)
    assert {name: row["status"] for name, row in rows.items() if not row["error"]} == {"first": "finished", "last": "finished"}
    assert {name: last_line(rows[name]["error"]) for name in ("signal", "leave-0")} == {
        name: ENDS[name][1] for name in ("signal", "leave-0")
    }
    assert job.run(spec, tmp_path, make_model=dying.sound_model) == 0
    assert not list(tmp_path.glob(".running-*"))


def test_an_exit_inside_of_a_trial_is_its_failure_in_this_process_too(tmp_path, monkeypatch):
    assert job.run(doomed("exit-0", "exit-word", "usual"), tmp_path / "mad", make_model=dying.make_model) == 1
    rows = rows_by_architecture(tmp_path / "mad")
    assert [row["status"] for row in rows.values()] == ["failed", "failed", "finished"]
    assert last_line(rows["exit-0"]["error"]) == ENDS["exit-0"][1]
    monkeypatch.setattr(in_process, "_rack", dying.rack)
    found = HERE.train_racks(
        {name: supernet_spec().placed("all:linear") for name in ("exit-0", "usual")}, tmp_path, RetrainSpec()
    )
    assert last_line(found["exit-0"]["error"]) == ENDS["exit-0"][1]
    assert found["usual"]["status"] == "finished"


def test_each_retrained_rack_comes_to_its_own_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(in_process, "_rack", dying.rack)
    names = ["raise", "exit-word", "leave-3", "signal", "usual"]
    runs = {name: supernet_spec().placed("all:linear") for name in names}
    found = HERE.train_racks(runs, tmp_path, RetrainSpec(isolate_trials=True))
    assert {name: last_line(found[name]["error"]) for name in names[:-1]} == {name: ENDS[name][1] for name in names[:-1]}
    assert found["usual"]["status"] == "finished"
    assert f"signal: failed: {ENDS['signal'][1]}" in capsys.readouterr().out


def test_each_candidate_comes_to_its_own_end(tmp_path, monkeypatch):
    monkeypatch.setattr(in_process, "run_candidate", dying.candidate)
    names = ["exit-0", "leave-0", "signal", "usual"]
    stacks = dict.fromkeys(names, STACK)
    spec = growth_spec(candidates=stacks, growth={"target_stacks": 2}, choice={"n_steps": 2, "trial_timeout": 120.0})
    lines = []
    assert grow_here(spec, tmp_path, lines) == 1
    assert "stage 2: usual is chosen among 4 candidate(s)" in lines
    for name in names[:-1]:
        assert f"stage 2: candidate {name} failed: {ENDS[name][1]}" in lines


@pytest.mark.parametrize("packing", ["never", "always"])
def test_the_suite_is_the_same_to_the_bit_in_processes_of_their_own(tmp_path, monkeypatch, packing):
    told = {}

    def moved(self, key, label, row, n_steps):  # noqa: ARG001 - what is replaced
        told.setdefault(name, []).append((key, label, row, n_steps))

    monkeypatch.setattr(job.Progress, "moved", moved)
    for name, isolates in (("here", False), ("apart", True)):
        spec = mad_spec(packing=packing, save_weights=True, isolate_trials=isolates)
        assert job.run(spec, tmp_path / name) == 0
    here, apart = (tmp_path / name / "trials.jsonl" for name in ("here", "apart"))
    assert timeless(TrialLog(here).rows.values()) == timeless(TrialLog(apart).rows.values())
    assert told["here"] == told["apart"]
    for path in (tmp_path / "here/checkpoints").glob("*.safetensors"):
        assert same(load_file(path), load_file(tmp_path / "apart/checkpoints" / path.name))


def test_racks_are_the_same_to_the_bit_in_processes_of_their_own(tmp_path):
    runs = {"rack": supernet_spec().placed("attention, gdn")}
    for name, limits in (("here", IsolationSpec()), ("apart", ISOLATED)):
        HERE.train_racks(runs, tmp_path / name, limits)
    here, apart = (load_file(tmp_path / name / "rack/weights.safetensors") for name in ("here", "apart"))
    assert same(here, apart)


def test_a_model_that_no_other_process_can_make_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="isolate_trials and trial_timeout need what a process of its own can import"):
        job.run(doomed("mine", isolate_trials=True), tmp_path / "run", make_model=lambda _: dying.Doomed("usual"))
    assert not (tmp_path / "run").exists()


def test_where_the_run_died_of_such_a_model_the_others_go_on_and_the_next_start_tries_it_again(tmp_path):
    spec = doomed("mine", "other")
    marker(tmp_path, spec.trials()[0].spec.fingerprint()).touch()
    for status in (1, 0):
        assert job.run(spec, tmp_path, make_model=lambda _: dying.Doomed("usual")) == status
        rows = rows_by_architecture(tmp_path)
        assert (rows["mine"]["status"], rows["other"]["status"]) == (("finished", "failed")[status], "finished")


def test_how_trials_are_kept_apart_is_no_content():
    keys = {"isolate_trials": True, "trial_timeout": 60.0}
    assert mad_spec(**keys).fingerprint() == mad_spec().fingerprint()
    assert RetrainSpec(**keys).fingerprint() == RetrainSpec().fingerprint()
    assert ChoiceSpec(**keys).fingerprint() == ChoiceSpec().fingerprint()
    with pytest.raises(ValueError, match="trial_timeout"):
        RetrainSpec(trial_timeout=0)


def test_a_benchmark_of_a_factory_runs_in_processes_of_their_own(tmp_path):
    keys = {
        name: value for name, value in doomed("mine").to_dict().items() if name in ("tasks", "lrs", "epochs", "seeds", "train")
    }
    scores = search.benchmark(dying.factory, "mine", out=tmp_path, weight_decays=[0.0], isolate_trials=True, **keys)
    assert 0 <= scores["in-context-recall"] <= 1
