"""The MAD job on Ray Tune: same numbers, failures isolated and retried, Optuna and ASHA, TensorBoard."""

import json
import math
import os
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

from configs import ConfigError
from configs.records import read_json
from launch.mad import sweep
from launch.mad.sweep import execute
from search import benchmark
from search.jobs.mad import job
from search.training import loop
from tests.launch.runs import RAW, numbers, rows_of, tiny
from tests.mad_folders import SIZES, listing, write_benchmark

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SUCCESS, FAILURE = 1, 2
"""Of a session in HParams, as its protocol numbers them."""
ONE = {"max_concurrent": 1}
"""Workers: one process starts sooner than two."""


def test_the_rows_are_those_of_a_run_in_one_process_whose_workers_are_kept_and_draw_curves(tmp_path):
    spec = tiny(lrs=[1e-3, 3e-3, 1e-2, 3e-2])
    assert job.run(spec, tmp_path / "here") == 0
    assert job.run(spec, tmp_path / "ray", execute) == 0
    here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "ray")
    assert len(here) == 8
    assert {key: numbers(row) for key, row in here.items()} == {key: numbers(row) for key, row in there.items()}

    state = json.loads(next(tmp_path.glob("ray/tune/session-1/experiment_state-*.json")).read_text())
    processes = [json.loads(trial[1])["last_result"]["pid"] for trial in state["trial_data"]]
    assert len(processes) == 8
    assert len(set(processes)) <= 3

    folders = sorted({path.parent for path in tmp_path.glob("ray/tune/session-1/*/events.out.tfevents.*")})
    assert len(folders) == 8
    events = EventAccumulator(str(folders[0])).Reload()
    assert [event.step for event in events.Scalars("ray/tune/accuracy")][:3] == [1, 2, 3]
    assert "_hparams_/session_start_info" in events.summary_metadata
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for name in (b"architecture", b"task", b"lr", b"weight_decay", b"seed"):
        assert name in start


def test_packed_trials_are_the_separate_ones(tmp_path):
    job.run(tiny(), tmp_path / "separate")
    assert job.run(tiny(packing="always", workers=ONE), tmp_path / "packed", execute) == 0
    packed = rows_of(tmp_path / "packed")
    for key, row in rows_of(tmp_path / "separate").items():
        assert packed[key]["n_packed"] == 2
        assert packed[key]["test_loss"] == pytest.approx(row["test_loss"], rel=1e-4)


def sessions(out):
    """By learning rate, what HParams shows of the first session's trials: the status, and the last held-out loss."""
    found = {}
    for folder in {path.parent for path in out.glob("tune/session-1/*/events.out.tfevents.*")}:
        events = EventAccumulator(str(folder)).Reload()
        start, end = (
            HParamsPluginData.FromString(events.summary_metadata[f"_hparams_/session_{name}_info"].plugin_data.content)
            for name in ("start", "end")
        )
        losses = events.Scalars("ray/tune/loss") if "ray/tune/loss" in events.Tags()["scalars"] else []
        lr = start.session_start_info.hparams["lr"].number_value
        found[lr] = end.session_end_info.status, losses[-1].value if losses else None
    return found


def test_workers_read_the_folder_of_the_benchmark_and_leave_it_as_it_is(tmp_path):
    folder = write_benchmark(tmp_path / "mad", ["in-context-recall"])
    before, spec = listing(folder), tiny(tasks={"in-context-recall": SIZES}, mode="mad", seeds=[12345], data_folder=str(folder))
    assert job.run(spec, tmp_path / "here") == 0
    assert job.run(spec, tmp_path / "ray", execute) == 0
    here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "ray")
    assert {key: numbers(row) for key, row in here.items()} == {key: numbers(row) for key, row in there.items()}
    assert all(row["data"] for row in there.values())
    assert listing(folder) == before


class Picky(nn.Module):
    """A model that only some trials can have."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 8)
        self.output = nn.Linear(8, vocab_size)

    def forward(self, tokens):
        return self.output(self.embedding(tokens))


def test_a_trial_that_raises_is_reported_one_whose_worker_dies_is_not_and_the_same_call_tries_again(tmp_path):
    broken, tries, died = (tmp_path / name for name in ("broken", "tries", "died"))
    broken.touch()

    def make_model(trial):
        if trial.spec.lr == 1e-3 and Path(broken).exists():
            with Path(tries).open("a") as file:
                file.write("once more\n")
            raise RuntimeError("no memory for this one")
        if trial.spec.lr == 1e-1 and not Path(died).exists():
            Path(died).touch()
            os._exit(1)
        return Picky(trial.spec.setting.instance().vocab_size)

    spec = tiny(architectures={"picky": None}, lrs=[1e-3, 1e-2, 1e-1, 1e30], workers={"max_failures": 1})
    assert job.run(spec, tmp_path / "run", execute, make_model) == 1
    rows = {row["lr"]: row for row in rows_of(tmp_path / "run").values()}
    assert rows[1e-3]["status"] == "failed"
    assert "no memory for this one" in rows[1e-3]["error"]
    assert len(tries.read_text().splitlines()) == 2
    assert died.exists()
    assert [rows[lr]["status"] for lr in (1e-2, 1e-1)] == ["finished", "finished"]
    assert rows[1e30]["status"] == "diverged"
    assert read_json(tmp_path / "run/results.json")["complete"] is False
    ended = {lr: sessions(tmp_path / "run")[lr] for lr in rows}
    assert {lr: status for lr, (status, _) in ended.items()} == {1e-3: FAILURE, 1e-2: SUCCESS, 1e-1: SUCCESS, 1e30: SUCCESS}
    assert {lr for lr, (_, loss) in ended.items() if loss is not None and not math.isfinite(loss)} == {1e30}
    broken.unlink()
    assert job.run(spec, tmp_path / "run", execute, make_model) == 0
    again = {row["lr"]: row for row in rows_of(tmp_path / "run").values()}
    assert again[1e-3]["status"] == "finished"
    assert [again[lr] for lr in (1e-2, 1e-1)] == [rows[lr] for lr in (1e-2, 1e-1)]


def test_optuna_draws_between_the_lowest_and_highest_rate_and_goes_on_with_its_studies(tmp_path):
    spec = tiny(lrs=[1e-4, 1e-1], weight_decays=[0.0, 0.5], sweep={"method": "optuna", "n_samples": 3}, epochs=1)
    assert job.run(spec, tmp_path, execute) == 0
    rows = list(rows_of(tmp_path).values())
    assert len(rows) == 6
    assert len({row["lr"] for row in rows}) == 6
    assert all(1e-4 <= row["lr"] <= 1e-1 and 1e-4 <= row["weight_decay"] <= 0.5 for row in rows)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    studies = optuna.get_all_study_summaries(storage)
    assert sorted(study.n_trials for study in studies) == [3, 3]
    assert job.run(spec, tmp_path, execute) == 0
    assert len(rows_of(tmp_path)) == 6

    log = tmp_path / "trials.jsonl"  # cut short: what is left is drawn anew
    lines = sorted(log.read_text().splitlines(), key=lambda line: json.loads(line)["architecture"])
    log.write_text("\n".join(lines[2:]) + "\n")
    before = rows_of(tmp_path)
    assert len(before) == 4
    assert job.run(spec, tmp_path, execute) == 0
    after = rows_of(tmp_path)
    assert len(after) == 6
    assert {key: after[key] for key in before} == before
    assert len({row["lr"] for row in after.values()} | {row["lr"] for row in rows}) == 8
    assert read_json(tmp_path / "results.json")["complete"] is True


def test_optuna_draws_no_weight_decay_where_there_is_none():
    space = sweep._space(tiny(weight_decays=[0.0]))
    assert optuna.create_study().ask(space).params["weight_decay"] == 0


def test_asha_stops_trials_that_are_behind_others_of_their_own_setting(tmp_path):
    lrs = [1e-2, 1e-7, 2e-7, 3e-7, 4e-7, 5e-7]
    spec = tiny(lrs=lrs, epochs=12, sweep={"asha": True, "grace_epochs": 2}, workers=ONE)
    assert job.run(spec, tmp_path, execute) == 0
    rows = rows_of(tmp_path).values()
    pruned = [row for row in rows if row["status"] == "pruned"]
    assert pruned
    assert all(row["lr"] < 1e-6 and row["steps"] < 24 for row in pruned)
    assert read_json(tmp_path / "results.json")["problems"] == {"stopped by ASHA": len(pruned)}
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert {row["status"] for row in rows if row["lr"] == 1e-2} <= {"finished", "solved"}


def test_draws_that_asha_stops_are_pruned_in_the_study_and_one_that_is_tried_again_counts_on(tmp_path):
    died = tmp_path / "died"

    def make_model(trial):
        model, n_steps = trial.spec.rack.build(trial.spec.seed), []

        def die_in_the_fifth_epoch(module, *_):
            n_steps.extend([module.training] * module.training)
            if len(n_steps) == 9 and not Path(died).exists():
                Path(died).touch()
                os._exit(1)

        loop.CHECKPOINT_SECONDS = -1.0  # in the worker
        model.register_forward_pre_hook(die_in_the_fifth_epoch)
        return model

    draws = {"method": "optuna", "n_samples": 8, "asha": True, "grace_epochs": 2}
    attention = {"attention": RAW["architectures"]["attention"]}
    spec = tiny(architectures=attention, lrs=[1e-6, 1e-1], epochs=9, sweep=draws, workers=ONE)
    assert job.run(spec, tmp_path / "run", execute, make_model) == 0
    assert died.exists()
    rows = rows_of(tmp_path / "run")
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "run/optuna.journal")))
    (study,) = optuna.get_all_study_summaries(storage)
    draws = optuna.load_study(study_name=study.study_name, storage=storage).trials
    states = {"pruned": TrialState.PRUNED, "finished": TrialState.COMPLETE}
    assert sorted(draw.state for draw in draws) == sorted(states[row["status"]] for row in rows.values())
    assert {draw.state for draw in draws} == set(states.values())
    for draw in draws:
        n_epochs = 9 if draw.state == TrialState.COMPLETE else len(draw.intermediate_values)
        assert list(draw.intermediate_values) == list(range(1, n_epochs + 1))
        assert n_epochs in (2, 8, 9)  # of the rungs, and whole


def test_a_worker_that_asks_for_too_much_is_an_error_not_a_wait(tmp_path):
    with pytest.raises(ConfigError, match=r"workers\.gpus: 1 a worker, but the cluster has 0 GPU"):
        job.run(tiny(workers={"gpus": 1}), tmp_path, execute)


def test_an_address_where_nothing_answers_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # of the Ray that other tests go on with
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: nothing answers there"):
        job.run(tiny(), tmp_path, execute)


def test_benchmark_of_a_factory_on_ray(tmp_path):
    def make_model(task, vocab_size, max_length):
        assert task == "in-context-recall"
        assert max_length == 16
        return Picky(vocab_size)

    keys = {name: value for name, value in tiny().to_dict().items() if name in ("tasks", "lrs", "epochs", "batch_size", "seeds")}
    scores = benchmark(make_model, "picky", out=tmp_path, execute=execute, workers=ONE, **keys)
    assert list(scores.index) == ["in-context-recall"]
    assert 0 <= scores["in-context-recall"] <= 1
