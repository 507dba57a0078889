"""The log of a training run on Ray: lines written by workers, repeated by the driver."""

import contextlib
from pathlib import Path
from typing import Any

from ray.train import UserCallback

LOG = "train.log"


def say(out: Path, text: str) -> None:
    """Add a line to the log in a run's folder."""
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(text + "\n")


class Tail:
    """The lines that the log has got since they were last asked for."""

    def __init__(self, out: Path) -> None:
        self._path, self._position = out / LOG, 0

    def lines(self) -> list[str]:
        """Those that are whole; the last one may still be on its way."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._position)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._position += len(whole + newline)
            return whole.decode().splitlines()
        return []


class Failures(UserCallback):
    """Puts into the log why the workers have to start anew; Train's controller calls it, in a process of its own."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some workers have failed."""
        del run_context
        say(self.out, told(worker_exceptions))


def told(failures: dict[int, Exception]) -> str:
    """What became of each worker that failed, in one line."""
    return "; ".join(f"worker {rank}: {_reason(failure)}" for rank, failure in sorted(failures.items()))


def _reason(failure: Exception) -> str:
    if hasattr(failure, "health_check_failure"):  # Train's word for a process that answers no more
        return "died (killed, or out of memory)"
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else 'without a word'}"
