"""What the commands `damage` and `kills` show of all files and many moments, here of some; and disks that are full."""

import errno
import os
import random
import signal

import pytest

from search.jobs.table import JOBS
from tests.resilience.damage import Laboratory, cases
from tests.resilience.kills import disturbed
from tests.resilience.tiny_jobs import ALL_JOBS, TINY, command, copied, finished_run, on_sync, run, told

QUICK = ("mad", "supernet", "placement", "progressive")


@pytest.fixture(scope="module")
def laboratories(tmp_path_factory):
    return {job: Laboratory(job, tmp_path_factory.mktemp("work")) for job in QUICK}


def test_every_job_is_tried():
    assert sorted(path.stem for path in TINY.glob("*.yaml")) == sorted(("mad", *JOBS))


@pytest.mark.parametrize("job", QUICK)
def test_damaged_files_are_made_again_or_named(laboratories, job):
    lab = laboratories[job]
    for _, state, kind, how in cases({job: lab}, 4, seed=3):
        outcome, text = lab.outcome(state, kind, how, random.Random(f"{kind} {how}")) or ("same", "")
        is_right = outcome == "same" or (outcome == "refused" and kind.endswith("spec.json"))
        assert is_right, f"{outcome}: {state}, {kind}, {how}\n{text}"


FINISHED = [
    ("supernet", "weights.safetensors", "truncated"),
    ("supernet", "weights.safetensors", "deleted"),
    ("supernet", "results.json", "not UTF-8"),
    ("supernet", "history.jsonl", "truncated"),
    ("placement", "scores.jsonl", "one byte flipped"),
    ("progressive", "results.json", "empty"),
    ("progressive", "stages/N/result.json", "deleted"),
    ("progressive", "stages/N/weights.safetensors", "truncated"),
    ("mad", "trials.jsonl", "truncated"),
]


@pytest.mark.parametrize(("job", "kind", "damage"), FINISHED)
def test_what_a_finished_run_has_left_is_made_again(laboratories, job, kind, damage):
    outcome, text = laboratories[job].outcome("finished", kind, damage, random.Random(0))
    assert outcome == "same", text
    assert damage == "deleted" or kind.rpartition("/")[2] in text


@pytest.mark.parametrize("job", QUICK)
def test_a_folder_in_the_way_of_a_file_is_one_message_that_names_it(laboratories, job):
    lab, out = laboratories[job], laboratories[job].folder / "run"
    for kind, path in lab.kinds("finished").items():
        copied(lab.folders["finished"], out)
        (out / path).unlink()
        (out / path).mkdir()
        status, text = run(command(job, out, lab.work))
        assert "Traceback" not in text, (kind, text)
        assert status == 0 or (status in (1, 2) and path.name in text.splitlines()[-1]), (kind, status, text)


@pytest.mark.parametrize("name", ["supernet", "progressive"])
def test_signals_at_a_moment_of_a_run_do_not_change_what_it_comes_to(laboratories, tmp_path, name):
    for number in (signal.SIGINT, signal.SIGKILL):
        problem, _ = disturbed(name, tmp_path / str(number), tmp_path, number, moments=[0.4, 0.6], seconds=1.0)
        assert problem is None
        assert told(tmp_path / str(number)) == laboratories[name].expected


def full_after(n_syncs):
    """A disk that is full from some write on."""

    def refuse(number):
        if number > n_syncs:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return on_sync(refuse)


@pytest.mark.parametrize("job", ALL_JOBS)
def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(tmp_path, job):
    status, text = run(command(job, tmp_path / "run", tmp_path), before=full_after(2 if job == "profile" else 7))
    assert status == 1, text
    assert "Traceback" not in text
    assert text.splitlines()[-1].endswith("No space left on device; make room, and the same command goes on from here")
    assert not list((tmp_path / "run").rglob("*.half-written"))
    finished_run(job, tmp_path / "run", tmp_path)


def test_a_pipeline_whose_racks_all_diverge_says_so_in_a_table_at_every_start(tmp_path):
    for _ in range(2):
        status, text = run(command("pipeline", tmp_path / "run", tmp_path, "retrain.lr=1e30"))
        assert status == 1, text
        assert "Traceback" not in text
        assert text.count("failed") > 2
        assert "diverged" in text


def test_a_copy_of_a_run_is_the_run(laboratories, tmp_path):
    """The folder says all: where it lies does not matter."""
    lab = laboratories["supernet"]
    status, text = run(command("supernet", copied(lab.folders["finished"], tmp_path / "moved"), tmp_path))
    assert status == 0
    assert "steps are finished" in text
    assert told(tmp_path / "moved") == lab.expected
