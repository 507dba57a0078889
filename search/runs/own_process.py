"""Runs a piece of work in a process of its own: what it tells and gives comes over a pipe, and its death is an error here."""

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from configs import ConfigError
from configs.storage import is_out_of_room

T = TypeVar("T")

Tell = Callable[[Any], None]
Work = Callable[[Tell], T]
"""What is to be done. It may tell of its progress, in values that can be pickled."""

GRACE_SECONDS = 10.0
"""What a process that is told to stop has for its checkpoint."""

_FIRST_OPTIMIZER = "torch._dynamo"
"""What torch imports when the first optimizer is made, for seconds. The server imports it once, and forks what is to work."""

_CONTEXT = get_context("forkserver")  # a fork of this process would have its threads' locks and its CUDA, without the threads


class TrialError(RuntimeError):
    """Why a trial failed; the text is ready to be shown, and its last line says it in short."""


class TookTooLongError(TrialError):
    """A trial has used up its time."""


class UnpicklableError(ConfigError):
    """Work cannot go to a process of its own."""


def contained(work: Work[T], tell: Tell) -> T:
    """Do the work here; what would end the thread that does it without a word is a TrialError.

    Ray Tune takes StopIteration for an orderly end.
    """
    try:
        return work(tell)
    except (SystemExit, StopIteration) as error:
        text = f"the trial ended itself by {type(error).__name__}({error})"
        raise TrialError(f"{traceback.format_exc()}{text}") from error


def run_in_own_process(
    work: Work[T], tell: Tell, *, timeout: float | None = None, dumps: Callable[[Any], bytes] = pickle.dumps
) -> T:
    """Do the work in a process that ends with it, and with this one.

    Args:
        work: what is done there; a module of that process has to have its function, if `dumps` goes by name as pickle does.
        tell: is told here what the work tells there.
        timeout: seconds from when the work begins, after its imports; None is no limit.
        dumps: how the work is written for the other process, which reads it with pickle.

    Raises:
        TrialError: with the traceback of an exception there, or how that process ended.
        TookTooLongError: if the time is over.
        ConfigError: if the work cannot be pickled, or raised one; OSError of a full disk and KeyboardInterrupt come through too.
    """
    import torch  # noqa: PLC0415 - whoever has work for it has imported it, and specs are read without

    payload = _pickled(work, dumps)
    here, there = _CONTEXT.Pipe()
    _CONTEXT.set_forkserver_preload([_FIRST_OPTIMIZER, getattr(work, "func", work).__module__])
    process = _CONTEXT.Process(target=_work_there, args=(there, payload, torch.get_num_threads()))
    process.start()
    there.close()
    try:
        result: T = _result(process, here, tell, timeout)
    except KeyboardInterrupt:
        process.terminate()
        process.join(GRACE_SECONDS)
        raise
    finally:
        here.close()  # which ends the process, if it still runs anything but C code that holds the lock of the interpreter
        process.join(1.0)
        process.kill()
        process.join()
    return result


def check_pickled(value: Any, what: str) -> None:
    """ConfigError if something that a trial needs cannot go to a process of its own."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        text = "isolate_trials and trial_timeout need what a process of its own can import, a function at the top of a module"
        raise ConfigError(f"{what}: {text}: {error}") from None


def _pickled(work: Any, dumps: Callable[[Any], bytes]) -> bytes:
    try:
        return dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UnpicklableError(
            f"the trial cannot run in a process of its own, which needs to import its model: {error}"
        ) from None


def _result(process: BaseProcess, here: Connection, tell: Tell, timeout: float | None) -> Any:
    deadline: float | None = None
    while True:
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        # A child of the trial's own may hold the pipe open, so that its end does not tell that the trial is gone.
        ready = connection.wait([here, process.sentinel], seconds)
        if not ready or (deadline is not None and time.monotonic() > deadline):  # one that hangs may tell of it for ever
            process.kill()
            raise TookTooLongError(f"the trial took longer than trial_timeout allows, {timeout:g} s, and was ended")
        message = _received(here) if here in ready or here.poll() else None
        if message is None:
            process.join(GRACE_SECONDS)
            raise TrialError(_how_it_ended(process.exitcode))
        kind, value = message
        if kind == "begins" and timeout is not None:
            deadline = time.monotonic() + timeout
        elif kind == "told":
            tell(value)
        elif kind == "raised":
            raise value
        elif kind == "done":
            return value


def _received(here: Connection) -> tuple[str, Any] | None:
    try:
        kind, value = here.recv()
    except (EOFError, OSError):
        return None
    return kind, value


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return "the trial let go of the pipe that its result would have come by, and was ended"
    if status >= 0:
        return f"the trial left its process with exit status {status} before it was done"
    names = {number.value: number.name for number in signal.Signals}
    return f"the trial's process was ended by {names.get(-status, f'signal {-status}')}"


def _work_there(there: Connection, payload: bytes, n_threads: int) -> None:
    """What the process of the work runs. A terminal's Ctrl-C comes to it, too, but is the other process's to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(there,), daemon=True).start()
    import torch  # noqa: PLC0415 - as above

    torch.set_num_threads(n_threads)
    import_module(_FIRST_OPTIMIZER)  # where there was no server that could
    try:
        work = pickle.loads(payload)  # noqa: S301 - from the process that has started this one
        there.send(("begins", None))
        answer = "done", contained(work, lambda value: there.send(("told", value)))
    except (ConfigError, KeyboardInterrupt, TrialError) as error:
        answer = "raised", error
    except Exception as error:  # noqa: BLE001 - it is raised over there
        is_passed_on = isinstance(error, OSError) and is_out_of_room(error)
        answer = "raised", error if is_passed_on else TrialError(traceback.format_exc())
    there.send(answer)


def _end_with_parent(there: Connection) -> None:
    """An orphan would hold locks of run folders, and write to them. Nothing is ever sent this way, so what comes is the end."""
    try:
        there.recv()
    except (EOFError, OSError):
        os._exit(1)
