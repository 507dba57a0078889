"""Progress of a training run: a line for people and a row of history.jsonl at every evaluation."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from configs.records import Row, add_rows, write_rows
from search.runs.console import duration, gibibytes, measured
from search.training.state import TrainState

HISTORY = "history.jsonl"

Say = Callable[[str], None]


class Report:
    """Writes the history as it grows, and says how far the run is and how long it will still take; silent on other ranks.

    `name` stands before every line.
    """

    def __init__(self, folder: Path, n_steps: int, say: Say, *, is_main: bool, name: str = "") -> None:
        self.path, self.n_steps, self.is_main = folder / HISTORY, n_steps, is_main
        self.say: Say = (lambda text: say(f"{name}{text}")) if is_main else lambda _: None
        self.started = time.monotonic()
        self.first: int | None = None
        self.is_open = False

    def stepped(self, step: int) -> None:
        """A step is done; the first one of this process tells whether the run goes on from a checkpoint."""
        if self.first is None:
            self.first = step - 1
            if self.first:
                self.say(f"going on from step {self.first} of {self.n_steps}")

    def evaluated(self, member: TrainState, row: dict[str, float]) -> None:
        """An evaluation; the first one of this process writes what came before it, too, and cuts off what a kill left."""
        if not self.is_main:
            return
        if not self.is_open:
            write_rows(self.path, member.history[:-1])
            self.is_open = True
        add_rows(self.path, [row])
        step = int(row["step"])
        seconds = (time.monotonic() - self.started) / (step - (self.first or 0)) * (self.n_steps - step)
        told = f"step {step} of {self.n_steps}: {_training_loss(row)}, held-out loss {measured(row['loss'])}"
        told += f", accuracy {row['accuracy']:.3f}"
        if "sampled_loss" in row:
            told += f" (other placements {row['sampled_loss']:.4f}, {row['sampled_accuracy']:.3f})"
        self.say(told + (f"; about {duration(seconds)} to go" if step < self.n_steps and member.status == "running" else ""))


def _training_loss(row: dict[str, float]) -> str:
    n_unsupervised = int(row.get("unsupervised_steps", 0))
    has_loss = not (n_unsupervised and math.isnan(row["train_loss"]))
    told = f"training loss {measured(row['train_loss'])}" if has_loss else "no training loss"
    return told + (f" ({n_unsupervised} step(s) had no supervised position)" if n_unsupervised else "")


def diverged_message(results: Row) -> str | None:
    """What there is to say of a run that diverged, by its summary; None of any other."""
    if results["status"] != "diverged":
        return None
    return f"diverged: at step {results['steps']} the training or the held-out loss is no finite number; give a smaller lr"


def outcome(summary: Row) -> Row:
    """What `TrainRacks` gives for a rack whose run has ended with this summary."""
    text = summary.get("error") or diverged_message(summary)
    return {"error": text} if text else summary


def outcome_text(row: Row) -> str:
    """A rack's outcome in a few words: its own (`told`), if it has any."""
    if "error" in row:
        return f"failed: {row['error'].strip().splitlines()[-1]}"
    if "told" in row:
        return str(row["told"])
    peak = f", at most {gibibytes(row['peak_bytes'])}" if row.get("peak_bytes") else ""
    return f"held-out loss {measured(row['loss'])}, {duration(row['seconds'])}{peak}"
