"""RunError: a run that has come to nothing, through no fault of its configuration."""


class RunError(RuntimeError):
    """What was asked for could not be reached; the text is ready to be printed, and the exit status is 1."""
