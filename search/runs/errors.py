"""Errors of runs that have come to nothing, through no fault of their configuration."""


class RunError(RuntimeError):
    """What was asked for could not be reached; the text is ready to be printed, and the exit status is 1."""


class NoFiniteScoreError(RunError):
    """Nothing that was scored has a finite score, so there is no best."""
