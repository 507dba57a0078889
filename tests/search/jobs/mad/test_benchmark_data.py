"""Runs over MAD's own data folder: scored on exactly its arrays, which stay as they are."""

import numpy as np
import pytest
import torch
from torch import nn

import search
from configs import ConfigError
from search.jobs.mad import job
from search.jobs.mad.benchmark_data import DataFolders
from search.jobs.mad.data import Data
from tests.mad_folders import NAMES, SIZES, arrays, listing, write_benchmark
from tests.search.cases import mad_spec, rows_in

TASKS = dict.fromkeys(NAMES, SIZES)
RUN = {"changes": "none", "lrs": [1e-3], "weight_decays": [0.0], "epochs": 1, "batch_size": 16, "train": {"device": "cpu"}}


class Recorder(nn.Module):
    """Reads tokens one by one, and remembers what it was evaluated on."""

    def __init__(self, vocab_size, seen):
        super().__init__()
        self.embedding, self.head, self.seen = nn.Embedding(vocab_size, 8), nn.Linear(8, vocab_size), seen

    def forward(self, tokens):
        if not self.training:
            self.seen.append(tokens.clone())
        return self.head(self.embedding(tokens))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("mad"))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(job, "save_picture", lambda *_: None)


def run_over(folder, **keys):
    spec = {"architectures": {"small": [{"kind": "mlp", "d_ff": 8}]}, "d_model": 8, "tasks": TASKS, "seeds": [12345], **RUN}
    return mad_spec(**{**spec, "data_folder": str(folder), **keys})


@pytest.mark.parametrize("mode", ["mad", "clean"])
@pytest.mark.parametrize("task", NAMES)
def test_the_splits_of_a_trial_are_the_arrays_of_the_folder(folder, task, mode):
    (single,) = run_over(folder, tasks={task: SIZES}, mode=mode).trials()
    data = Data.of(single.spec, 12345, DataFolders.of(str(folder)))
    for split in ("train", "test"):
        expected = arrays(task, split)
        assert np.array_equal(getattr(data, split).inputs.numpy(), expected["inputs"])
        assert np.array_equal(getattr(data, split).targets.numpy(), expected["targets"])
    assert (data.validation is None) == (mode == "mad")


def test_a_run_scores_every_task_on_exactly_those_arrays_and_leaves_the_folder_alone(folder, tmp_path, capsys):
    seen: dict[str, list] = {}
    before = listing(folder)

    def make_model(task, vocab_size, max_length):
        del max_length
        return Recorder(vocab_size, seen.setdefault(task, []))

    scores = search.benchmark(make_model, "recorder", tasks=TASKS, data_folder=str(folder), out=tmp_path / "run", **RUN)
    assert scores.notna().all()
    assert set(seen) == set(NAMES)
    for task, batches in seen.items():
        *while_training, test, train = torch.cat(batches).split([32] * ((len(torch.cat(batches)) - 48) // 32) + [48])
        for evaluated in (*while_training, test):
            assert np.array_equal(evaluated.numpy(), arrays(task, "test")["inputs"])
        assert np.array_equal(train.numpy(), arrays(task, "train")["inputs"])
    assert listing(folder) == before
    assert len({row["data"] for row in rows_in(tmp_path / "run")}) == 6
    assert "data: MAD's own, 6 setting(s) of " in capsys.readouterr().out


def test_scores_are_those_of_the_arrays(folder, tmp_path):
    """Targets that are others give other scores, whatever the inputs."""
    spec = run_over(folder, tasks={"compression": SIZES})
    job.run(spec, tmp_path / "first", show=False)
    other = write_benchmark(tmp_path / "other", ["compression"])
    for path in other.rglob("test/targets.npy"):
        np.save(path, np.roll(np.load(path), 1, axis=1))
    job.run(spec.model_copy(update={"data_folder": str(other)}), tmp_path / "second", show=False)
    (first,), (second,) = rows_in(tmp_path / "first"), rows_in(tmp_path / "second")
    assert first["test_loss"] != second["test_loss"]
    assert first["train_loss"] == second["train_loss"]


def test_a_missing_setting_is_named_before_anything_is_done(folder, tmp_path):
    spec = run_over(folder, changes=["vocab_size"], tasks={"compression": SIZES, "memorization": SIZES})
    with pytest.raises(ConfigError) as caught:
        job.run(spec, tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    assert NAMES["compression"].replace("vs-16", "vs-32") in lines[0]
    assert lines[0].endswith(f"; it has {NAMES['compression']}")
    assert not (tmp_path / "run").exists()


def test_a_test_of_another_length_is_not_there(folder, tmp_path):
    spec = run_over(folder, mode="clean", tasks={"in-context-recall": {**SIZES, "test_seq_len": 256}})
    with pytest.raises(ConfigError, match="leave test_seq_len out"):
        job.run(spec, tmp_path / "run")


def test_rows_of_other_data_are_not_taken_for_those_of_the_folder(folder, tmp_path):
    one = {"tasks": {"compression": SIZES}}
    drawn = run_over(folder, **one, data_folder=None)
    job.run(drawn, tmp_path / "run", show=False)
    with pytest.raises(ConfigError, match=r"compression baseline were drawn, .* of MAD's folder \(.*another out="):
        job.run(run_over(folder, **one), tmp_path / "run")
    job.run(run_over(folder, **one), tmp_path / "other", show=False)
    assert job.run(run_over(folder, **one), tmp_path / "other", show=False) == 0
    with pytest.raises(ConfigError, match="are drawn; give another out="):
        job.run(drawn, tmp_path / "other")


def test_the_seed_of_a_trial_need_not_be_that_of_the_folder(folder, tmp_path):
    """A benchmark is the same data for all: seeds of a run are those of weights and order."""
    spec = run_over(folder, tasks={"compression": SIZES}, mode="clean", seeds=[0, 1])
    assert job.run(spec, tmp_path / "run", show=False) == 0
    rows = rows_in(tmp_path / "run")
    assert [row["seed"] for row in rows] == [0, 1]
    assert len({row["data"] for row in rows}) == 1
