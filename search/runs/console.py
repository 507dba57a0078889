"""What a run tells while it works: a line a finished trial, a live line for the ones under way."""

import math
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from configs.records import Row


def duration(seconds: float) -> str:
    """`75` as `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def gibibytes(n_bytes: float) -> str:
    """`1610612736` as `1.50 GiB`."""
    return f"{n_bytes / 2**30:.2f} GiB"


def measured(value: float | None, error: float | None = None, *, form: str = ".4f") -> str:
    """A measurement for a table, with its standard error where there is one; `not finite` for what is no finite number."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return format(value, form) + ("" if error is None else f" ±{format(error, form.lstrip('+'))}")


def make_console() -> Console:
    """A console for people: plain, and wide where it is not a terminal (a file, a pipe, a cluster's log)."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 150)


class Progress:
    """Reports trials as they move and finish; on a terminal the trials under way are shown live below the lines."""

    def __init__(self, n_trials: int, n_done: int, console: Console | None = None) -> None:
        self.console = console or make_console()
        self.n_trials, self.n_done, self._first = n_trials, n_done, n_done
        self._started = time.monotonic()
        self._running: dict[str, tuple[str, ...]] = {}
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False)

    def moved(self, key: str, label: str, row: dict[str, float], n_steps: int) -> None:
        """An evaluation of a trial or pack that goes on."""
        facts = (f"{row['step']:.0f} of {n_steps}", measured(row.get("train_loss"), form=".3f"), f"{row['accuracy']:.3f}")
        self._running[key] = (label, *facts)
        self._refresh()

    def ended(self, key: str) -> None:
        """A trial or pack that is no longer under way."""
        self._running.pop(key, None)

    def finished(self, row: Row) -> None:
        """A trial that has ended, well or not."""
        self.ended(row["key"])
        told = f"accuracy {row['test_accuracy']:.3f}" if row.get("test_accuracy") is not None else ""
        told = row["error"].strip().splitlines()[-1] if row.get("error") else told
        facts = ", ".join(part for part in (row["status"], told, duration(row.get("seconds") or 0)) if part)
        self.count(label(row), facts)
        self._refresh()

    def skip(self) -> None:
        """One that had ended before this run began."""
        self.n_done += 1
        self._first += 1

    def count(self, name: str, facts: str) -> None:
        """One more has ended: what there is to say of it, and how long the others will take."""
        self.n_done += 1
        n_left = self.n_trials - self.n_done
        seconds = (time.monotonic() - self._started) / (self.n_done - self._first) * n_left
        rest = f" (about {duration(seconds)} to go)" if n_left > 0 else ""
        self.say(f"[{self.n_done}/{self.n_trials}] {name}: {facts}{rest}")

    def _refresh(self) -> None:
        if self._live is not None:
            table = Table(box=None)
            for title in ("under way", "step", "training loss", "held-out accuracy"):
                table.add_column(title, style="dim", justify="left" if title == "under way" else "right")
            for cells in self._running.values():
                table.add_row(*map(escape, cells))
            self._live.update(table, refresh=True)


def label(row: Row) -> str:
    """A trial or pack in one line: architecture, task, setting, and its point of the grid."""
    change = "" if row["change"] == "baseline" else f" {row['change']}"
    setting = f"{row['architecture']} on {row['task']}{change}"
    if "lr" not in row:
        return f"{setting}, {row['n_packed']} points of the grid packed"
    return f"{setting}, lr {row['lr']:.2g}, wd {row['weight_decay']:.2g}, seed {row['seed']}"
