"""Text that changes between a kill and its continuation is noticed."""

import pytest

from configs import ConfigError
from search.jobs.supernet.step import SupernetStep
from tasks.text import text
from tests.search.supernets import RECALL, supernet_spec, train_into

STEP = SupernetStep.__call__


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"document {number} " * 8)
    return folder


def spec_of(corpus, tmp_path):
    task = {"kind": "text", "seq_len": 16, "files": str(corpus), "validation_fraction": 0.2, "folder": str(tmp_path / "tokens")}
    data = {"tasks": {"recall": {"task": RECALL}, "prose": {"task": task}}, "batch_size": 4}
    return supernet_spec(data=data, n_steps=4, eval_every=2, n_eval_placements=0, checkpoint_every=1)


def train_until(step, monkeypatch, spec, out):
    def gradients(self, pack, running, now):
        if now == step:
            raise KilledError
        return STEP(self, pack, running, now)

    with monkeypatch.context() as patch:
        patch.setattr(SupernetStep, "__call__", gradients)
        with pytest.raises(KilledError):
            train_into(out, spec)


def test_a_run_whose_text_has_changed_does_not_go_on(corpus, tmp_path, monkeypatch):
    spec, out = spec_of(corpus, tmp_path), tmp_path / "run"
    train_until(2, monkeypatch, spec, out)
    before = (corpus / "3.txt").read_text()
    (corpus / "3.txt").write_text("another document " * 8)
    text._opened.cache_clear()  # as in a new process
    checkpoint = (out / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"data\.tasks: the files of prose have changed since .*; delete .*checkpoint"):
        train_into(out, spec)
    assert (out / "checkpoint.safetensors").read_bytes() == checkpoint
    (corpus / "3.txt").write_text(before)
    text._opened.cache_clear()
    assert train_into(out, spec)["status"] == "finished"


def test_deleting_the_checkpoint_begins_anew_with_the_new_text(corpus, tmp_path, monkeypatch):
    spec, out = spec_of(corpus, tmp_path), tmp_path / "run"
    train_until(2, monkeypatch, spec, out)
    (corpus / "3.txt").write_text("another document " * 8)
    text._opened.cache_clear()
    (out / "checkpoint.safetensors").unlink()
    assert train_into(out, spec)["steps"] == 4
