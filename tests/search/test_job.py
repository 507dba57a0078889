"""The MAD job: it runs what is left, survives what a kill leaves, and says what went wrong."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import search
from configs import ConfigError
from search import training
from search.mad import job, library, trial
from search.mad.scores import score
from search.results import TrialLog, run_folder
from tests.search.cases import TASK, mad_spec

ROOT = Path(__file__).parents[2]
TIMES = ("seconds",)


def rows_in(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def timeless(rows):
    """Rows by key, without what the clock says."""
    return {row["key"]: {name: value for name, value in row.items() if name not in TIMES} for row in rows}


def results_in(folder):
    def refuse(constant):
        raise AssertionError(constant)

    results = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    return {**results, "settings": [{**cell, "best_seconds": 0} for cell in results["settings"]]}


@pytest.fixture
def never_train(monkeypatch):
    def stop():
        monkeypatch.setattr(job, "run_trials", lambda *_, **__: pytest.fail("trained"))

    return stop


def test_a_run_leaves_everything_in_its_folder_and_a_second_has_nothing_to_do(tmp_path, capsys, never_train):
    spec, out = mad_spec(), tmp_path / "run"
    assert job.run(spec, out) == 0
    assert {path.name for path in out.iterdir() if path.is_file()} >= {
        "spec.json",
        "trials.jsonl",
        "trials.parquet",
        "results.json",
        "scores.png",
    }
    assert type(spec)(**json.loads((out / "spec.json").read_text())) == spec
    rows = rows_in(out)
    assert [row["key"] for row in rows] == [single.spec.fingerprint() for single in spec.trials()]
    for row in rows:
        assert row["status"] == "finished"
        assert len(row["history"]) == 2
        assert row["steps"] == 4
        for name in ("seed", "lr", "weight_decay", "torch", "python", "hardware", "n_parameters", "n_packed", "seconds"):
            assert row[name] is not None
    table = pd.read_parquet(out / "trials.parquet")
    assert list(table["key"]) == [row["key"] for row in rows]
    results = results_in(out)
    assert results["complete"] is True
    assert results["scores"]["small"]["mean"] == max(rows, key=lambda row: row["held_out_accuracy"])["test_accuracy"]
    assert results["sizes"]["small"]["n_parameters"] == rows[0]["n_parameters"]
    assert not list(out.rglob("*.checkpoint.*"))

    before = (out / "trials.jsonl").read_bytes()
    never_train()
    capsys.readouterr()
    assert job.run(spec, out) == 0
    assert "all 2 trials are finished" in capsys.readouterr().out
    assert (out / "trials.jsonl").read_bytes() == before
    assert results_in(out) == results


def failing(fail, error=RuntimeError):
    """`run_trials` that raises for the trials that `fail` says, and notes all it is asked for."""
    asked, run_trials = [], trial.run_trials

    def run(trials, **keys):
        asked.extend(single.spec.fingerprint() for single in trials)
        if any(fail(single) for single in trials):
            raise error("the mixer\nbroke in two")
        return run_trials(trials, **keys)

    return run, asked


def test_a_trial_that_raises_is_a_row_and_the_others_run(tmp_path, monkeypatch, capsys):
    spec = mad_spec(lrs=[1e-3, 2e-3, 3e-3], weight_decays=[0.0])
    run, _ = failing(lambda single: single.spec.lr == 2e-3)
    monkeypatch.setattr(job, "run_trials", run)
    assert job.run(spec, tmp_path) == 1
    rows = rows_in(tmp_path)
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert "broke in two" in rows[1]["error"]
    assert "Traceback" in rows[1]["error"]
    told = capsys.readouterr().out
    assert "broke in two" in told
    assert "1 trial(s) failed" in told
    results = results_in(tmp_path)
    assert results["complete"] is False
    assert results["problems"] == {"failed": 1}

    run, asked = failing(lambda _: False)
    monkeypatch.setattr(job, "run_trials", run)
    assert job.run(spec, tmp_path) == 0
    assert asked == [spec.trials()[1].spec.fingerprint()]
    assert results_in(tmp_path)["complete"] is True
    assert [row["status"] for row in TrialLog(tmp_path / "trials.jsonl").rows.values()] == ["finished"] * 3


def test_a_pack_in_which_one_raises_is_not_lost_as_a_whole(tmp_path, monkeypatch):
    """What breaks one trial (or was too much for a pack) must not cost the others their result."""
    spec = mad_spec(lrs=[1e-3, 2e-3, 3e-3], weight_decays=[0.0], packing="always")
    run, _ = failing(lambda single: single.spec.lr == 2e-3)
    monkeypatch.setattr(job, "run_trials", run)
    assert job.run(spec, tmp_path) == 1
    statuses = {row["lr"]: row["status"] for row in TrialLog(tmp_path / "trials.jsonl").rows.values()}
    assert statuses == {1e-3: "finished", 2e-3: "failed", 3e-3: "finished"}


@pytest.mark.parametrize("stopped_in", ["training", "between"])
@pytest.mark.parametrize("packing", ["never", "always"])
def test_an_interrupted_run_goes_on_to_the_same_results(tmp_path, monkeypatch, stopped_in, packing):
    spec = mad_spec(seeds=[0, 1], epochs=4, packing=packing, pack_size=2)
    assert job.run(spec, tmp_path / "whole") == 0
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        if stopped_in == "training":
            rows_seen = []

            def interrupt(self, key, label, row, n_steps):  # noqa: ARG001 - what is replaced
                rows_seen.append((key, row["step"]))
                if len({key for key, _ in rows_seen}) >= 3 and row["step"] == 6:
                    raise KeyboardInterrupt

            patch.setattr(job.Progress, "moved", interrupt)
        else:
            third = [single.spec.fingerprint() for single in spec.trials()][2]
            run, _ = failing(lambda single: single.spec.fingerprint() == third, KeyboardInterrupt)
            patch.setattr(job, "run_trials", run)
        with pytest.raises(KeyboardInterrupt):
            job.run(spec, tmp_path / "cut")
    done = {row["key"] for row in rows_in(tmp_path / "cut")}
    assert len(done) == 2
    run, asked = failing(lambda _: False)
    monkeypatch.setattr(job, "run_trials", run)
    assert job.run(spec, tmp_path / "cut") == 0
    assert len(asked) == 2
    assert not set(asked) & done
    assert results_in(tmp_path / "cut") == results_in(tmp_path / "whole")
    assert timeless(rows_in(tmp_path / "cut")) == timeless(rows_in(tmp_path / "whole"))
    assert not list((tmp_path / "cut").rglob("*.checkpoint.*"))


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_results(tmp_path):
    """SIGKILL in the middle of a trial, from outside."""
    spec = mad_spec(epochs=60, weight_decays=[0.0, 0.1])
    job.run(spec, tmp_path / "whole")
    code = (
        "import sys, os, signal, json; from pathlib import Path\n"
        "from search import training; from search.mad import job; from search.mad.spec import MadSpec\n"
        "training.CHECKPOINT_SECONDS = -1.0\n"
        "def moved(self, key, label, row, n_steps):\n"
        "    if len(Path(sys.argv[2], 'trials.jsonl').read_text().splitlines()) == 1 and row['step'] >= 60:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "job.Progress.moved = lambda self, *a: moved(self, *a) if Path(sys.argv[2], 'trials.jsonl').exists() else None\n"
        "job.run(MadSpec(**json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(spec.to_dict()), str(tmp_path / "cut")]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert len(rows_in(tmp_path / "cut")) == 1
    assert job.run(spec, tmp_path / "cut") == 0
    assert results_in(tmp_path / "cut") == results_in(tmp_path / "whole")


def test_a_torn_last_line_is_dropped_with_a_notice_and_its_trial_runs_again(tmp_path, monkeypatch, capsys):
    spec = mad_spec()
    job.run(spec, tmp_path)
    log = tmp_path / "trials.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-40])
    run, asked = failing(lambda _: False)
    monkeypatch.setattr(job, "run_trials", run)
    capsys.readouterr()
    assert job.run(spec, tmp_path) == 0
    assert "1 line(s) cut short by a kill were dropped; those trials run again" in " ".join(capsys.readouterr().out.split())
    assert asked == [spec.trials()[1].spec.fingerprint()]
    assert timeless(TrialLog(log).rows.values()) == timeless(map(json.loads, whole.splitlines()))


def test_the_last_row_of_a_key_counts_and_lines_are_whole(tmp_path):
    log = TrialLog(tmp_path / "trials.jsonl")
    log.add({"key": "a", "status": "failed", "loss": math.nan, "text": "line\nbreak \u2028 here"})
    log.add({"key": "a", "status": "finished"})
    log.add({"key": "b", "status": "finished"})
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 3
    again = TrialLog(tmp_path / "trials.jsonl")
    assert {key: row["status"] for key, row in again.rows.items()} == {"a": "finished", "b": "finished"}
    assert again.n_torn == 0


def test_another_specification_may_not_use_the_folder(tmp_path, never_train):
    job.run(mad_spec(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    never_train()
    with pytest.raises(ConfigError, match="holds the results of another specification") as caught:
        job.run(mad_spec(epochs=3), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_two_runs_in_one_folder_are_refused(tmp_path):
    spec = mad_spec()
    with run_folder(tmp_path, spec), pytest.raises(ConfigError, match="another process is working on this run"):
        job.run(spec, tmp_path)
    assert job.run(spec, tmp_path) == 0


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_specification_is_a_readable_error(tmp_path, damage):
    spec = mad_spec()
    (tmp_path / "spec.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"spec\.json"):
        job.run(spec, tmp_path)


def test_a_folder_that_cannot_be_made_is_a_readable_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"):
        job.run(mad_spec(), tmp_path / "file")


def test_a_missing_device_is_one_error_before_anything_runs(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for packing in ("auto", "never"):
        spec = mad_spec(train={"device": "cuda"}, packing=packing)
        with pytest.raises(ConfigError, match="torch sees no CUDA device"):
            job.run(spec, tmp_path / packing)
        assert not (tmp_path / packing / "trials.jsonl").exists()


@pytest.mark.parametrize("keys", [{"sweep": {"method": "optuna"}}, {"sweep": {"asha": True}}])
def test_what_needs_ray_is_said(tmp_path, keys):
    with pytest.raises(ConfigError, match="python -m launch mad"):
        job.run(mad_spec(**keys), tmp_path)


def test_a_diverged_run_is_a_result(tmp_path, capsys):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, tokens):
            return (self.weight * math.nan).expand(*tokens.shape, 8)

    spec = mad_spec(architectures={"broken": None})
    assert job.run(spec, tmp_path, make_model=lambda _: Broken()) == 0
    assert {row["status"] for row in rows_in(tmp_path)} == {"diverged"}
    results = results_in(tmp_path)
    assert results["scores"]["broken"]["mean"] is None
    assert results["problems"] == {"diverged": 2}
    assert results["complete"] is True
    told = capsys.readouterr().out
    assert "2 trial(s) diverged" in told
    assert "incomplete" in told


def test_a_model_of_the_caller_is_needed_where_there_is_no_architecture(tmp_path):
    with pytest.raises(ConfigError, match="null stands for a model given by the caller"):
        job.run(mad_spec(architectures={"mine": None}), tmp_path)


def test_weights_are_kept_if_asked_for(tmp_path):
    spec = mad_spec(save_weights=True, weight_decays=[0.0])
    job.run(spec, tmp_path)
    (single,) = spec.trials()
    path = tmp_path / "checkpoints" / f"{single.spec.fingerprint()}.weights.safetensors"
    tensors, state = search.checkpoint.load(path, torch.device("cpu"))
    model = single.spec.rack.build()
    for kind in ("best", "last"):
        own = {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}
        search.checkpoint.load_weights(model, own)
    assert state["step"] == 4


def test_packed_and_separate_trials_score_alike(tmp_path):
    for packing in ("never", "always"):
        job.run(mad_spec(packing=packing, seeds=[0, 1], lrs=[1e-3, 1e-2]), tmp_path / packing)
    separate, packed = (TrialLog(tmp_path / packing / "trials.jsonl").rows for packing in ("never", "always"))
    assert separate.keys() == packed.keys()
    assert {row["n_packed"] for row in packed.values()} == {6, 2}
    for key, row in separate.items():
        for name in ("test_loss", "train_loss", "test_perplexity", "held_out_loss"):
            assert packed[key][name] == pytest.approx(row[name], rel=1e-4)


def test_data_on_disk_give_the_same_results(tmp_path):
    job.run(mad_spec(), tmp_path / "drawn")
    job.run(mad_spec(data_folder=str(tmp_path / "data")), tmp_path / "kept")
    assert len(list((tmp_path / "data").glob("*.arrow"))) == 3
    assert timeless(rows_in(tmp_path / "drawn")) == timeless(rows_in(tmp_path / "kept"))


@pytest.mark.parametrize("mode", ["mad", "clean"])
def test_selection_uses_the_split_of_the_mode(mode):
    """In mode mad the held-out figures are those of the test set, in mode clean the test set is touched once at the end."""
    (single,) = mad_spec(mode=mode, weight_decays=[0.0], seeds=[0]).trials()
    (row,) = trial.run_trials([single])
    best = next(entry for entry in row["history"] if entry["step"] == row["best_step"])
    assert row["held_out_loss"] == best["loss"]
    assert (row["test_loss"] == pytest.approx(best["loss"], rel=1e-6)) is (mode == "mad")


class Bigram(nn.Module):
    """A model of a caller: logits by the last token."""

    def __init__(self, vocab_size, max_length):
        super().__init__()
        self.max_length = max_length
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens):
        return self.table(tokens)


TINY = {"n_train": 32, "n_validation": 16, "n_test": 16}


def test_benchmark_scores_a_model_of_the_caller(tmp_path):
    made = []

    def make(task, vocab_size, max_length):
        made.append((task, vocab_size, max_length))
        return Bigram(vocab_size, max_length)

    copying = {**TINY, "task": {"seq_len": 16, "n_tokens_to_copy": 2}}
    tasks = {"compression": {**TINY, "task": {"seq_len": 8}}, "selective-copying": copying}
    keys = {"changes": "none", "epochs": 30, "lrs": [0.3], "weight_decays": [0.0], "train": {"device": "cpu"}, "out": tmp_path}
    scores = library.benchmark(make, "bigram", tasks=tasks, **keys)
    assert isinstance(scores, pd.Series)
    assert scores.name == "bigram"
    assert list(scores.index) == ["compression", "selective-copying"]
    assert scores["compression"] > 0.95  # each token is its own target
    assert 0 <= scores["selective-copying"] < 0.6
    assert made == [("compression", 16, 8), ("selective-copying", 16, 16)]
    again = library.benchmark(lambda *_: pytest.fail("built"), "bigram", tasks=tasks, **keys)
    pd.testing.assert_series_equal(scores, again)


def test_benchmark_gives_nan_where_there_is_no_score():
    def make(task, vocab_size, max_length):
        if task == "compression":
            raise RuntimeError("no such model")
        return Bigram(vocab_size, max_length)

    tasks = {"compression": TINY, "memorization": {**TINY, "changes": {}}}
    keys = {"changes": "none", "epochs": 1, "lrs": [0.1], "weight_decays": [0.0], "train": {"device": "cpu"}}
    scores = library.benchmark(make, "bigram", tasks=tasks, **keys)
    assert math.isnan(scores["compression"])
    assert not math.isnan(scores["memorization"])


@pytest.mark.parametrize(
    "keys", [{"tasks": ["compresion"]}, {"tasks": ["compression"], "epochs": 0}, {"tasks": ["compression"], "epoch": 3}]
)
def test_benchmark_refuses_what_it_does_not_know(keys):
    with pytest.raises(ConfigError, match="benchmark: "):
        library.benchmark(Bigram, "bigram", **keys)


RUNS = [
    {"task": {"kind": "compression", "seq_len": 8}, **TINY},
    {"task": {"kind": "fuzzy_in_context_recall", "seq_len": 32, "k_motif_size": 2, "v_motif_size": 2}, **TINY},
    {"task": {"kind": "selective_copying", "seq_len": 16, "n_tokens_to_copy": 2}, **TINY},
    {"task": {"kind": "memorization", "vocab_size": 16}, **TINY},
    {"task": {"kind": "noisy_in_context_recall", "seq_len": 16, "noise_vocab_size": 4}, **TINY},
]


@pytest.mark.parametrize("config", RUNS, ids=lambda config: config["task"]["kind"])
@pytest.mark.parametrize("mode", ["mad", "clean"])
def test_every_task_runs_to_a_score(config, mode):
    spec = mad_spec(tasks={"one": config}, weight_decays=[0.0], mode=mode, seeds=[0])
    (single,) = spec.trials()
    scores = score(spec, trial.run_trials([single]))
    assert 0 <= scores.of("small").value <= 1
    assert scores.problems() == {}


@pytest.mark.parametrize("config", [*RUNS[:3], TASK])
def test_train_task_returns_a_row(config):
    if config is TASK:
        config = {"task": {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 16}, **TINY}
    vocab_size = config["task"].get("vocab_size", 16)
    row = library.train_task(Bigram(vocab_size, 0), config, epochs=2, batch_size=16, lr=0.1, train={"device": "cpu"})
    assert isinstance(row, pd.Series)
    assert row["status"] == "finished"
    assert row["steps"] == 4
    assert 0 <= row["test_macro_accuracy"] <= 1
    assert row["seed"] == 12345


def test_train_task_leaves_the_model_with_its_best_weights():
    model, config = Bigram(16, 16), RUNS[2]
    row = library.train_task(model, config, epochs=3, batch_size=16, lr=10.0, mode="clean", train={"device": "cpu"})
    assert row["best_step"] < row["steps"]
    (single, *_) = mad_spec(tasks={"one": config}).trials()
    batches = trial.Data.of(single.spec, 12345, None).test
    found = search.metrics.evaluate(lambda inputs: model(inputs)[None], batches.in_order())
    assert found["loss"].item() == pytest.approx(row["test_loss"], rel=1e-6)


@pytest.mark.parametrize("config", ["in-context-recal", {"task": {"kind": "compresion"}}, {"kind": "compression"}, 5])
def test_train_task_refuses_what_it_does_not_know(config):
    with pytest.raises(ConfigError, match="task"):
        library.train_task(Bigram(16, 8), config)


def test_train_task_refuses_settings_it_does_not_know():
    with pytest.raises(ConfigError, match=r"train_task: train\.stop_att: unknown key 'stop_att'; did you mean 'stop_at'"):
        library.train_task(Bigram(16, 8), "compression", train={"stop_att": 1})
