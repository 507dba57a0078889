"""SIGINT and SIGTERM on a command line: one line and a status, whenever they come; and who listens to them afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from search.jobs.supernet.job import train_supernet
from search.runs.interruption import (
    INTERRUPTED,
    SIGNALS,
    handlers_kept,
    interruptible,
    interruptions,
    interruptions_held,
    interruptions_raised,
)
from tests.search.cases import mad_spec
from tests.search.supernets import supernet_spec

ROOT = Path(__file__).parents[3]
IMPORTING = """
import runpy, signal, sys

_, module, number, package, *arguments = sys.argv


class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            signal.raise_signal(int(number))


sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = arguments
runpy.run_module(package, run_name="__main__", alter_sys=True)
"""
"""Runs a package as `python -m` does, with a signal in the middle of an import."""


@pytest.fixture(autouse=True)
def handlers():
    """What a command line leaves behind is a process that ends."""
    with handlers_kept():
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        yield


@pytest.mark.parametrize("package", ["search", "launch"])
@pytest.mark.parametrize("module", ["search.cli.main", "pydantic", "search.jobs.mad.spec"])
@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_of_imports_is_one_line(package, module, number):
    command = [sys.executable, "-c", IMPORTING, module, str(int(number)), package, "mad", "--preset", "quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"{INTERRUPTED}\n")


def at_once(number):
    signal.raise_signal(number)


def noted(number):
    """As training does: after the step under way."""
    with interruptions() as is_interrupted:
        signal.raise_signal(number)
    assert is_interrupted()
    raise KeyboardInterrupt


def held(number):
    """As what compiled code calls does: after all of it."""
    reached = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with interruptions_held():
            signal.raise_signal(number)
            reached.append("the end")
        pytest.fail("was not interrupted")
    assert reached == ["the end"]
    raise KeyboardInterrupt


def held_in_what_fails(number):
    """The error is not the end of it: somebody may expect it, and go on."""
    with contextlib.suppress(ValueError), interruptions_held():
        signal.raise_signal(number)
        raise ValueError("failed")
    pytest.fail("was not interrupted")


def twice(number):
    """The second one does not wait for the end of the step."""
    with interruptions():
        signal.raise_signal(number)
        signal.raise_signal(number)
        pytest.fail("was not interrupted")


def as_tune_does(number):
    """Tune takes SIGINT alone, and keeps it."""
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append("to stop"))
    signal.raise_signal(number)
    assert asked == ["to stop"]
    raise KeyboardInterrupt


def in_an_import(number):
    """Libraries make other errors of what comes up in the middle of an import."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt as error:
        raise ImportError("numpy._core.multiarray failed to import") from error


def in_a_compiled_call(number):
    """Some libraries leave nothing of it but an error of their own."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(number)
    raise ValueError("could not determine the shape")


INTERRUPTS = [at_once, noted, held, held_in_what_fails, twice, as_tune_does, in_an_import, in_a_compiled_call]


@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_of_a_job_is_one_line(capsys, interrupt, number):
    def command():
        with interruptions_raised():
            interrupt(number)
        return 0

    assert interruptible(command) == 128 + number
    assert capsys.readouterr().err == f"{INTERRUPTED}\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_status_is_kept_where_code_that_is_made_of_a_text_was_interrupted(tmp_path, number):
    (tmp_path / "job.py").write_text(
        "import signal, sys\n"
        "from search.runs.interruption import interruptible, interruptions_raised\n"
        "def command():\n"
        "    with interruptions_raised():\n"
        f"        exec('signal.raise_signal({int(number)})')\n"
        "sys.exit(interruptible(command))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-m", "job"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, f"{INTERRUPTED}\n")


@pytest.mark.parametrize("error", [ImportError, SystemExit])
def test_what_is_no_interruption_stays_what_it_is(error):
    def command():
        with interruptions_raised():
            raise error

    with pytest.raises(error):
        interruptible(command)


def test_signals_are_given_back_to_who_listened_before():
    before = [signal.getsignal(number) for number in SIGNALS]
    with handlers_kept():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptions_raised():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("job", ["mad", "placement", "supernet"])
def test_an_interrupted_job_says_so_and_the_same_command_goes_on(tmp_path, job, number):
    """In the middle of an import of the job's own, the last thing that it does or (of a supernet) before the first step."""
    if job == "placement":
        train_supernet(supernet_spec(), tmp_path / "supernet", say=lambda _: None)
    described = {
        "mad": mad_spec().to_dict(),
        "placement": {"job": "placement", "supernet": str(tmp_path / "supernet"), "budgets": [1], "n_batches": 2},
        "supernet": supernet_spec().to_dict(),
    }[job]
    config, out = tmp_path / "job.yaml", tmp_path / "run"
    config.write_text(json.dumps(described))
    module = "torch._dynamo" if job == "supernet" else "pandas"
    words = [job, str(config), f"out={out}"]
    command = [sys.executable, "-c", IMPORTING, module, str(int(number)), "search", *words]
    cut = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (cut.returncode, cut.stderr) == (128 + number, f"{INTERRUPTED}\n")
    assert not list(out.rglob("*half-written*"))
    whole = subprocess.run([sys.executable, "-m", "search", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (whole.returncode, whole.stdout.splitlines()[-1]) == (0, str(out)), whole.stderr
