"""Names of Tune sessions in a run folder: a new one at each start."""

from pathlib import Path
from typing import Any


def next_session(folder: Path) -> str:
    """The name of the next run of Tune in a folder; each has its own, for what is left to do stands in our own logs."""
    return f"session-{sum(1 for _ in folder.glob('session-*')) + 1}"


def error_of(trial: Any) -> str:
    """What a trial that has failed said each time it was tried."""
    told = Path(trial.error_file) if trial.error_file else None
    return told.read_text(encoding="utf-8") if told is not None and told.exists() else "the worker died without a word"


def last_error_of(trial: Any) -> str:
    """What a trial said when it failed last."""
    _, heading, last = error_of(trial).rpartition("Failure # ")
    return last.partition("\n")[2] if heading else last
