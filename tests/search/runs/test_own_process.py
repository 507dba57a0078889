"""Work in a process of its own: what comes through to this one, and that it ends with it."""

import errno
import os
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest

from configs import ConfigError
from search.jobs.in_process import _rack
from search.runs.isolation import NO_LIMITS, IsolationSpec, marker, run_trial
from search.runs.own_process import TookTooLongError, run_in_own_process
from search.runs.run_folder import CHECKPOINT
from search.training.checkpoint import Checkpoint
from tests.search import dying
from tests.search.supernets import supernet_spec


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid, seconds=5.0):
    until = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def test_a_full_disk_bad_input_and_an_interrupt_come_through_as_they_are():
    with pytest.raises(OSError, match="no room") as full:
        run_in_own_process(dying.full_disk, print)
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, "weights")
    with pytest.raises(ConfigError, match="lr: too high"):
        run_in_own_process(dying.bad_input, print)
    with pytest.raises(KeyboardInterrupt):
        run_in_own_process(dying.interrupted, print)


def test_the_time_of_a_pack_is_that_of_its_trials():
    limits, told = IsolationSpec(trial_timeout=1.0), []
    assert run_trial(dying.slow, told.append, limits, n_trials=9) == "done"
    assert told == ["half"]
    with pytest.raises(TookTooLongError, match="1 s, and was ended"):
        run_trial(dying.slow, told.append, limits)


def test_work_that_tells_for_ever_has_no_more_time():
    with pytest.raises(TookTooLongError, match=r"0\.2 s, and was ended"):
        run_in_own_process(dying.talk, lambda _: None, timeout=0.2)


def test_what_cannot_go_to_another_process_is_said():
    with pytest.raises(ConfigError, match="process of its own, which needs to import its model"):
        run_in_own_process(lambda tell: None, print)  # noqa: ARG005 - the shape of work


def test_whoever_is_told_may_end_it():
    told = []

    def tell(pid):
        told.append(pid)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run_in_own_process(dying.told_pid, tell)
    assert ends(told[0], 0.0)


def test_it_does_not_outlive_a_process_that_is_killed():
    run_in_own_process(dying.nothing, print)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            forkserver._forkserver.ensure_running = lambda: None  # the one of the process that was forked serves this one, too
            run_in_own_process(dying.told_pid, lambda pid: (os.write(writing, f"{pid}\n".encode()), os._exit(1)))
        finally:
            os._exit(2)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        pid = int(pipe.readline())
    os.waitpid(child, 0)
    assert ends(pid)


def test_an_interrupted_rack_leaves_its_checkpoint(tmp_path):
    spec = supernet_spec(n_steps=2000).placed("all:linear")

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_own_process(partial(_rack, spec, tmp_path), interrupt)
    assert Checkpoint(tmp_path / CHECKPOINT, spec.fingerprint()).is_usable()


def test_a_marker_lies_there_while_work_is_done_here_and_gives_it_a_process_of_its_own_where_it_is_found(tmp_path):
    own, seen = marker(tmp_path, "one"), []

    def here(tell):
        seen.append(own.exists())
        tell(os.getpid())

    run_trial(here, seen.append, NO_LIMITS, markers=[own])
    assert seen == [True, os.getpid()]
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            run_trial(lambda _, error=error: dying._raise(error()), print, NO_LIMITS, markers=[own])
        assert not own.exists()
    own.touch()
    assert run_trial(dying.slow, seen.append, NO_LIMITS, markers=[own]) == "done"
    assert not own.exists()
