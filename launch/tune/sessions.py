"""Sessions of Tune in a run folder, a new one at each start, and what became of their trials."""

from pathlib import Path
from typing import Any

from ray import tune

from search.runs.interruption import handlers_kept


def next_session(folder: Path) -> str:
    """The name of the next run of Tune in a folder; each has its own, for what is left to do stands in our own logs."""
    numbers = [path.name.removeprefix("session-") for path in folder.glob("session-*")]
    return f"session-{max((int(number) for number in numbers if number.isdecimal()), default=0) + 1}"


def fit(tuner: tune.Tuner) -> None:
    """Run a session. The first interruption ends it in order, and it is the caller's to see what is left to do.

    Tune does not give SIGINT back when it ends: the next Ctrl-C would be lost.
    """
    with handlers_kept():
        tuner.fit()


def error_of(trial: Any) -> str:
    """What a trial that has failed said each time it was tried."""
    told = Path(trial.error_file) if trial.error_file else None
    return told.read_text(encoding="utf-8") if told is not None and told.exists() else "the worker died without a word"


def last_error_of(trial: Any) -> str:
    """What a trial said when it failed last."""
    _, heading, last = error_of(trial).rpartition("Failure # ")
    return last.partition("\n")[2] if heading else last
