"""What a trial reports to Tune, and its end where Tune stops it in the middle of a report."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

FAILED = "failed"
"""A key of the last report of a trial: whether it has failed although it returns, so that Tune does not try it again."""


class _StoppedByTune(BaseException):
    """Not SystemExit, by which Tune stops a trial, for that is a failure where it comes from the trial itself."""


def tell_tune(numbers: dict[str, Any]) -> None:
    """Report from within `stoppable`."""
    try:
        tune.report(numbers)
    except SystemExit:
        raise _StoppedByTune from None


@contextmanager
def stoppable() -> Iterator[None]:
    """Around all that a trial does: where Tune has stopped it, its thread ends as Tune wants it to."""
    try:
        yield
    except _StoppedByTune:
        sys.exit(0)
