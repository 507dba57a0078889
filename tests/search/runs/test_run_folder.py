"""What a run's folder holds after a write that failed, or that a kill cut short."""

import pytest

from configs.storage import whole_file
from search.jobs.mad.spec import MadSpec
from search.runs.figures import picture
from search.runs.run_folder import run_folder, write_parquet, write_text

SPEC = MadSpec.model_validate({"architectures": {"own": None}, "tasks": ["memorization"]})


def test_what_a_kill_left_half_written_goes_when_the_run_goes_on(tmp_path):
    with run_folder(tmp_path, SPEC):
        killed = whole_file(tmp_path / "scores.png")
        unfinished = killed.__enter__()
    assert unfinished.exists()
    with run_folder(tmp_path, SPEC):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "spec.json"]


def draw(path):
    with picture(path, 1, 1):
        pass


WRITERS = {
    "text": lambda path: write_text(path, "text"),
    "table": lambda path: write_parquet([{"loss": 1.0}], path),
    "picture": draw,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, writer):
    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        writer(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
