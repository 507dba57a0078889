"""The MAD job: what it leaves, what it does not do twice, and what it says of failures."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

import search
from configs import ConfigError
from configs.load import load_saved
from search.jobs.mad import job, run_trials
from search.runs.run_folder import TrialLog, run_folder
from tests.search.cases import failing, mad_spec, results_in, rows_in, timeless


@pytest.fixture
def never_train(monkeypatch):
    def stop():
        monkeypatch.setattr(run_trials, "run_trials", lambda *_, **__: pytest.fail("trained"))

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
    assert load_saved(type(spec), out / "spec.json") == spec
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


def test_the_table_is_in_the_order_of_the_grid_whenever_its_trials_ended(tmp_path):
    job.run(mad_spec(), tmp_path)
    before = list(pd.read_parquet(tmp_path / "trials.parquet")["key"])
    log = TrialLog(tmp_path / "trials.jsonl")
    log.drop(before[:1])
    job.run(mad_spec(), tmp_path)
    assert [row["key"] for row in rows_in(tmp_path)] == [*before[1:], before[0]]
    assert list(pd.read_parquet(tmp_path / "trials.parquet")["key"]) == before


def test_a_trial_that_raises_is_a_row_and_the_others_run(tmp_path, monkeypatch, capsys):
    spec = mad_spec(lrs=[1e-3, 2e-3, 3e-3], weight_decays=[0.0])
    run, _ = failing(lambda single: single.spec.lr == 2e-3)
    monkeypatch.setattr(run_trials, "run_trials", run)
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
    monkeypatch.setattr(run_trials, "run_trials", run)
    assert job.run(spec, tmp_path) == 0
    assert asked == [spec.trials()[1].spec.fingerprint()]
    assert results_in(tmp_path)["complete"] is True
    assert [row["status"] for row in TrialLog(tmp_path / "trials.jsonl").rows.values()] == ["finished"] * 3


def test_a_pack_in_which_one_raises_is_not_lost_as_a_whole(tmp_path, monkeypatch):
    """What breaks one trial (or was too much for a pack) must not cost the others their result."""
    spec = mad_spec(lrs=[1e-3, 2e-3, 3e-3], weight_decays=[0.0], packing="always")
    run, _ = failing(lambda single: single.spec.lr == 2e-3)
    monkeypatch.setattr(run_trials, "run_trials", run)
    assert job.run(spec, tmp_path) == 1
    statuses = {row["lr"]: row["status"] for row in TrialLog(tmp_path / "trials.jsonl").rows.values()}
    assert statuses == {1e-3: "finished", 2e-3: "failed", 3e-3: "finished"}


def test_the_last_row_of_a_key_counts_and_lines_are_whole(tmp_path):
    log = TrialLog(tmp_path / "trials.jsonl")
    log.add({"key": "a", "status": "failed", "loss": math.nan, "text": "line\nbreak \u2028 here"})
    log.add({"key": "a", "status": "finished"})
    log.add({"key": "b", "status": "finished"})
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 3
    again = TrialLog(tmp_path / "trials.jsonl")
    assert {key: row["status"] for key, row in again.rows.items()} == {"a": "finished", "b": "finished"}
    assert again.n_damaged == 0


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


def test_a_missing_kernel_is_one_error_before_anything_is_written(tmp_path, never_train, monkeypatch):
    def missing(op, name):
        if name not in ("auto", "reference"):
            raise ValueError(f"kernel = {name}: not installed, {op} needs it")

    monkeypatch.setattr(job, "check_kernel", missing)
    never_train()
    architectures = {
        "first": ["attention(kernel=flash-attn)", "mlp", "attention(kernel=flash-attn)"],
        "second": ["attention"],
        "third": [{"kind": "mamba2", "kernel": "mamba-ssm", "d_head": 8}],
    }
    with pytest.raises(ConfigError) as caught:
        job.run(mad_spec(architectures=architectures), tmp_path / "run")
    assert str(caught.value).splitlines() == [
        "architectures.first: kernel = flash-attn: not installed, attend needs it",
        "architectures.third: kernel = mamba-ssm: not installed, state_space_duality needs it",
    ]
    assert not (tmp_path / "run").exists()


def test_an_architecture_of_the_caller_has_no_kernels_to_check(tmp_path):
    make_model = lambda trial: nn.Embedding(trial.spec.setting.instance().vocab_size, 8)  # noqa: E731
    assert job.run(mad_spec(architectures={"mine": None}), tmp_path, make_model=make_model, show=False) == 0


@pytest.mark.parametrize("keys", [{"sweep": {"method": "optuna"}}, {"sweep": {"asha": True}}])
def test_what_needs_ray_is_said(tmp_path, keys):
    with pytest.raises(ConfigError, match="python -m launch mad"):
        job.run(mad_spec(**keys), tmp_path)


def test_a_run_that_diverged_throughout_is_told_and_has_no_score(tmp_path, capsys):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, tokens):
            return (self.weight * math.nan).expand(*tokens.shape, 8)

    spec = mad_spec(architectures={"broken": None})
    assert job.run(spec, tmp_path, make_model=lambda _: Broken()) == 1
    assert {row["status"] for row in rows_in(tmp_path)} == {"diverged"}
    results = results_in(tmp_path)
    assert results["scores"]["broken"]["mean"] is None
    assert results["problems"] == {"diverged": 2}
    assert results["complete"] is False
    told = capsys.readouterr().out
    assert "2 trial(s) diverged" in told
    assert "incomplete" in told
    assert "broken has no score on in-context-recall: of some setting no trial came to a finite result" in told


def test_a_model_of_the_caller_is_needed_where_there_is_no_architecture(tmp_path):
    with pytest.raises(ConfigError, match="null stands for a model given by the caller"):
        job.run(mad_spec(architectures={"mine": None}), tmp_path)


def test_weights_are_kept_if_asked_for(tmp_path):
    spec = mad_spec(save_weights=True, weight_decays=[0.0])
    job.run(spec, tmp_path)
    (single,) = spec.trials()
    path = tmp_path / "checkpoints" / f"{single.spec.fingerprint()}.weights.safetensors"
    tensors, state = search.training.checkpoint.read(path, torch.device("cpu"))
    model = single.spec.rack.build()
    for kind in ("best", "last"):
        own = {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}
        search.training.checkpoint.load_weights(model, own)
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
    (row,) = run_trials.run_trials([single])
    best = next(entry for entry in row["history"] if entry["step"] == row["best_step"])
    assert row["held_out_loss"] == best["loss"]
    assert (row["test_loss"] == pytest.approx(best["loss"], rel=1e-5)) is (mode == "mad")
