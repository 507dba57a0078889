"""Each job at a size that takes a second or two, run in a process of its own, and what its folder says."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
from argparse import ArgumentParser
from functools import cache
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from search.cli.main import add_jobs, add_mad, main
from search.jobs.table import JOBS, job_run
from search.runs.interruption import interruptible
from search.training.devices import use_one_thread
from tests.models.huggingface.folders import tiny_llama

TINY = Path(__file__).parent / "tiny"
ALL_JOBS = ("mad", *JOBS)
NEEDED = {"placement": {"supernet": "supernet"}}
"""By job: the keys that are folders of other jobs' finished runs."""

MADE = {"hybridize": {"model": lambda work: tiny_llama(work / "model")}}
"""By job: the keys that are what is made here."""

OF_THE_CLOCK = {"seconds", "best_seconds", "step_ms", "cache_fill_seconds", "peak_bytes", "milliseconds", "checksum"}
OF_THE_DISK = {"cache_fill_forwards"}
"""What differs from run to run; and with what of a cache lay on the disk already, of candidates or of a start before."""
NOT_COMPARED = re.compile(r"\.lock$|\.png$|/caches/|/candidates/|moments\.safetensors$")
"""Pictures; caches, whose rows are in the order in which they were asked for; what nothing reads once its stage is done."""


def command(job, out, work, *overrides):
    """The words of a job's command line; the runs that it needs are made in `work` first."""
    given = [f"{key}={make(work)}" for key, make in MADE.get(job, {}).items()]
    for key, other in NEEDED.get(job, {}).items():
        folder = work / f"needed-{other}"
        if not (folder / "results.json").exists():
            status, text = run(command(other, folder, work))
            assert status == 0, text
        given.append(f"{key}={folder}")
    return [job, str(TINY / f"{job}.yaml"), f"out={out}", *given, *overrides]


def run(words, *, before=lambda: None, meanwhile=None):
    """Run a command line in a forked process; its exit status (minus the signal that ended it) and what it printed.

    `before` is called in that process, `meanwhile` with its id while it runs.
    """
    import_what_jobs_need()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _in_child(words, writing, before)
    os.close(writing)
    if meanwhile is not None:
        meanwhile(child)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


@cache
def import_what_jobs_need():
    """Once, in the process that forks: some seconds, half of them what torch imports for the first optimizer."""
    for name in ("torch._dynamo", "matplotlib.figure", "scipy.stats", "search.jobs.in_process"):
        import_module(name)
    for job in ALL_JOBS:
        job_run(job)


def _in_child(words, writing, before):
    """Never returns: the status is what the command line's would be, 70 with a traceback."""
    status = 70
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))  # pytest has others
        forkserver._forkserver.__init__()  # that of the process which forked, if another test has one, is no child of this one
        use_one_thread()
        before()
        parser = ArgumentParser()
        jobs = parser.add_subparsers(dest="job", required=True)
        for add in (add_jobs, add_mad):
            add(jobs)
        status = interruptible(lambda: main(parser, "search.jobs.in_process:HERE", words))
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - shown, as the interpreter would
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def told(folder):
    """What a finished run's folder holds, by file, in values that can be compared: no times, no pictures, no locks."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not NOT_COMPARED.search(str(path))
    }


def _content(path):
    try:
        return _read(path)
    except (ValueError, KeyError, SafetensorError) as error:
        return f"unreadable: {error}"


def _read(path):
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            state = json.loads(file.metadata()["state"])
        exact = {
            name: (str(each.dtype), tuple(each.shape), each.flatten().view(torch.uint8).tolist())
            for name, each in tensors.items()
        }
        return exact, _timeless(state)
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return sorted(json.dumps(_timeless(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines())
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        columns = [name for name in table if name not in OF_THE_CLOCK | OF_THE_DISK | {"history"}]
        return table[columns].map(repr).to_dict("list")
    return path.read_bytes()


def _timeless(value):
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in OF_THE_CLOCK | OF_THE_DISK}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def kind_of(path):
    """What kind of file it is: its path in the run's folder without numbers, hashes and names of placements."""
    parts = [re.sub(r"\d+", "N", part) if re.fullmatch(r"[a-z-]*\d+[a-z.-]*", part) else part for part in path.parts]
    return "/".join(re.sub(r"^.*-?[0-9a-f]{12}", "*", part) for part in parts)


def copied(source, target):
    """A fresh copy of a run's folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


def kill_after(seconds, number, folder):
    """For `run`: sends a signal so many seconds after the run's folder has been made."""

    def meanwhile(child):
        while not (folder / "spec.json").exists():
            time.sleep(0.002)
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    return meanwhile


def on_sync(act):
    """For `run`: calls `act` with the number of each sync to the disk, which a run makes for every file and row, before it."""
    sync, numbers = os.fsync, itertools.count(1)

    def fsync(descriptor):
        act(next(numbers))
        sync(descriptor)

    return lambda: setattr(os, "fsync", fsync)


def note_in(path):
    """Keep the number of syncs in a file."""
    return lambda number: path.write_text(str(number))


def die_at(n_syncs):
    """Die as by kill -9."""
    return lambda number: number < n_syncs or os.kill(os.getpid(), signal.SIGKILL)


def finished_run(job, out, work, *overrides, before=lambda: None):
    """Run a job to its end; what it has printed, and the seconds since its folder was there."""
    started = []

    def meanwhile(_):
        while not (out / "spec.json").exists():
            time.sleep(0.002)
        started.append(time.monotonic())

    status, text = run(command(job, out, work, *overrides), before=before, meanwhile=meanwhile)
    assert status == 0, text
    return text, time.monotonic() - started[0]
