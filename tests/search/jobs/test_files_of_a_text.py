"""Files of a text that are missing or empty are one message, with their key in the configuration, and nothing is trained."""

import re

import pytest

from configs import ConfigError
from configs.load import validate
from search.jobs.in_process import HERE
from search.jobs.mad import job as mad
from search.jobs.progressive import job as progressive
from search.jobs.supernet import job as supernet
from search.jobs.supernet.spec import SupernetSpec
from tests.search.cases import mad_spec
from tests.search.growths import growth_spec

MISSING, EMPTY = "no file is named or matched by ", "no text in "
RACK = {"d_model": 16, "stacks": [{"n_blocks": 1, "block": {"mixer": "attention"}}]}


def text(tmp_path, kind):
    """A text that nothing can be read of."""
    path = tmp_path / "text.txt"
    if kind != MISSING:
        path.write_text("")
    return {"kind": "text", "seq_len": 16, "files": str(path), "folder": str(tmp_path / "tokens")}


def train_supernet(task, out):
    keys = {"rack": RACK, "data": {"tasks": {"wiki": {"task": task}}, "batch_size": 4}, "n_steps": 2, "train": {"device": "cpu"}}
    supernet.run(validate(SupernetSpec, keys, "test"), out, HERE)


def grow(task, out):
    progressive.run(growth_spec(rack=RACK, data={"task": task, "n_train": None, "n_validation": None}), out, HERE)


def benchmark(task, out):
    mad.run(mad_spec(tasks={"wiki": {"n_train": 8, "n_validation": 4, "n_test": 4, "task": task}}), out)


JOBS = {
    "data.tasks.wiki.task.files": train_supernet,
    "data.task.files": grow,
    "tasks.wiki.task.files": benchmark,
}


@pytest.mark.parametrize("kind", [MISSING, EMPTY])
@pytest.mark.parametrize("key", JOBS)
def test_the_message_has_the_key(tmp_path, key, kind):
    with pytest.raises(ConfigError, match=f"^{re.escape(key)}: {re.escape(kind)}.*text\\.txt"):
        JOBS[key](text(tmp_path, kind), tmp_path / "out")
    assert not (tmp_path / "out/trials.jsonl").exists()


def test_an_empty_split_has_the_key_too(tmp_path):
    task = text(tmp_path, EMPTY)
    (tmp_path / "text.txt").write_text("one document, which is in one split alone")
    with pytest.raises(ConfigError, match=r"^data\.task\.files: the (train|validation) split of .* is empty"):
        grow(task, tmp_path / "out")
