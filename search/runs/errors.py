"""Errors of runs that have come to nothing, through no fault of their configuration."""

from configs.storage import is_out_of_room
from search.runs.interruption import was_interrupted


class RunError(RuntimeError):
    """What was asked for could not be reached; the text is ready to be printed, and the exit status is 1."""


class NoFiniteScoreError(RunError):
    """Nothing that was scored has a finite score, so there is no best."""


def ends_the_run(error: Exception) -> bool:
    """Whether what came up in a trial is no failure of that trial: a full disk, or what an interruption has become."""
    return was_interrupted() or (isinstance(error, OSError) and is_out_of_room(error))
