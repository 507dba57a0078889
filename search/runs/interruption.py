"""Interruptions: noted when they come, acted on between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """While the context is open SIGINT and SIGTERM are noted; what it yields tells whether one has come.

    A second one acts as ever. Only the main thread of a process can listen to signals; elsewhere there are none to note.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        noted.set()
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield noted.is_set
    finally:
        restore()
