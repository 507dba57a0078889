"""Interruptions (SIGINT, SIGTERM): noted when they come, acted on between two steps, and told in one line by the commands."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "interrupted; the same command goes on from here"


class Interrupted(KeyboardInterrupt):
    """What a signal raises in a command line's job.

    Where Python's own comes up in code that is made of a text (as dataclasses are, in any import), CPython ends `python -m` by
    SIGINT, although it was caught.
    """


class _Newest:
    """The signal that came last, for signals belong to the process: the exit status tells which one it was."""

    number = signal.SIGINT
    was_raised = False


def was_interrupted() -> bool:
    """Whether a signal has been raised in this command line's job, though what came of it may be some other exception.

    In the middle of a compiled library's call (safetensors, pydantic) it comes out as an error of that library, without a trace.
    """
    return _Newest.was_raised


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """While the context is open SIGINT and SIGTERM are noted; what it yields tells whether one has come.

    A second one acts as ever. Only the main thread of a process can listen to signals; elsewhere there are none to note.
    """
    noted = threading.Event()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        _Newest.number = signal.Signals(number)
        noted.set()
        _listen(before)

    with handlers_kept() as is_ours:
        if is_ours:
            _listen(dict.fromkeys(SIGNALS, note))
        yield noted.is_set


@contextmanager
def interruptions_held() -> Iterator[None]:
    """SIGINT and SIGTERM act when the context ends, however it does.

    For where compiled code calls Python: there an exception may end the process.
    """
    is_interrupted: Callable[[], bool] = bool
    try:
        with interruptions() as is_interrupted:
            yield
    finally:
        if is_interrupted():
            signal.raise_signal(_Newest.number)


@contextmanager
def handlers_kept() -> Iterator[bool]:
    """Give the signals back, when the context ends, to who listened to them before: libraries keep them for themselves.

    Yields whether this is the main thread, which alone may listen to signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield True
    finally:
        _listen(before)


def _listen(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # one that was not installed from Python
            signal.signal(number, handler)


def interruptible(command: Callable[[], int]) -> int:
    """Run a command line, imports and all; interrupted, it is one line on stderr and the status 128 + the signal's number.

    Until a job begins (`interruptions_raised`) the process ends where it is, for an exception in the middle of an import gets
    lost or comes out as another one, and there is nothing to be tidied.
    """
    _Newest.number, _Newest.was_raised = signal.SIGINT, False  # also where Tune takes it for itself
    _listen(dict.fromkeys(SIGNALS, _end_with_a_word))
    try:
        return command()
    except BaseException as error:
        if not _is_interrupt(error) and not _Newest.was_raised:
            raise
        _Newest.was_raised = False
        _listen(dict.fromkeys(SIGNALS, _end))  # in what ends the interpreter another one would be a traceback
        sys.stderr.write(f"{INTERRUPTED}\n")
        return 128 + _Newest.number


@contextmanager
def interruptions_raised() -> Iterator[None]:
    """While a command line's job runs SIGINT is a KeyboardInterrupt, and SIGTERM is whatever SIGINT is just then.

    So whoever takes SIGINT for a while, as Ray Tune does, winds up in order at either.
    """
    _Newest.was_raised = False
    with handlers_kept() as is_ours:
        if is_ours:
            _listen({signal.SIGINT: _raise, signal.SIGTERM: _as_ctrl_c})
        yield


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    _Newest.number, _Newest.was_raised = signal.Signals(number), True
    raise Interrupted


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    _Newest.number = signal.Signals(number)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(number, frame)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    os._exit(128 + number)


def _end_with_a_word(number: int, frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), f"{INTERRUPTED}\n".encode())
    _end(number, frame)


def _is_interrupt(error: BaseException | None) -> bool:
    """Also of an error that an interrupt in the middle of a library's import or call has become."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
