"""What a run of growth tells while it works, and what each stage leaves: history, a row of the table."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from search.devices import hardware
from search.member import Member
from search.progress import duration
from search.progressive.plan import Stage
from search.progressive.spec import ProgressiveSpec
from search.results import Row, to_json, write_text
from search.supernet.report import divergence

HISTORY, RESULT, RESULTS = "history.jsonl", "result.json", "results.json"

Say = Callable[[str], None]

COLUMNS = {
    "stage": ("stage", "{}"),
    "stacks": ("stacks", "{}"),
    "new": ("uid", "{}"),
    "chosen": ("chosen", "{}"),
    "before": ("loss_before", "{:.4f}"),
    "grown": ("loss_grown", "{:.4f}"),
    "after": ("loss", "{:.4f}"),
    "steps": ("steps", "{:,}"),
    "step ms": ("step_ms", "{:.1f}"),
    "trained": ("n_trained_parameters", "{:,}"),
    "saved bytes": ("saved_bytes", "{:,}"),
    "cache": ("cache_mode", "{}"),
    "hits": ("cache_hit_rate", "{:.1%}"),
    "cache bytes": ("cache_bytes", "{:,}"),
    "trunk runs": ("trunk_forwards", "{:,}"),
}
"""Of the table: the title, the key in a stage's row, and how it is written."""


class Report:
    """Writes the history of a stage as it grows, and says how far it is; silent on other ranks than the main one."""

    def __init__(self, spec: ProgressiveSpec, stage: Stage, folder: Path, say: Say, *, is_main: bool) -> None:
        self.spec, self.stage, self.path, self.is_main = spec, stage, folder / HISTORY, is_main
        self.say: Say = say if is_main else lambda _: None
        self.started = time.monotonic()
        self.first: int | None = None
        self.is_open = False

    def stepped(self, step: int) -> None:
        """A step is done; the first one of this process tells whether the stage goes on from a checkpoint."""
        if self.first is None:
            self.first = step - 1
            if self.first:
                self.say(f"{self._name()}: going on from step {self.first} of {self.stage.n_steps}")

    def evaluated(self, member: Member, row: dict[str, float]) -> None:
        """An evaluation; the first one of this process writes what came before it, too, and cuts off what a kill left."""
        if not self.is_main:
            return
        if not self.is_open:
            write_text(self.path, "".join(to_json(each) + "\n" for each in member.history[:-1]))
            self.is_open = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")
        step, n_steps = int(row["step"]), self.stage.n_steps
        seconds = (time.monotonic() - self.started) / (step - (self.first or 0)) * (n_steps - step)
        rest = f"; about {duration(seconds)} to go" if step < n_steps and member.status == "running" else ""
        losses = f"training loss {row['train_loss']:.4f}, held-out loss {row['loss']:.4f}"
        self.say(f"{self._name()}: step {step} of {n_steps}, {losses}, accuracy {row['accuracy']:.3f}{rest}")

    def _name(self) -> str:
        return f"stage {self.stage.index + 1} of {self.spec.n_stages}"


def table(rows: Sequence[Row]) -> str:
    """The stages in columns, as text; columns of which nothing is known are left out."""
    shown = {title: key for title, key in COLUMNS.items() if any(row.get(key[0]) is not None for row in rows)}
    cells = [[form.format(row[key]) if row.get(key) is not None else "" for key, form in shown.values()] for row in rows]
    lines = [list(shown), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(shown))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def write_results(spec: ProgressiveSpec, out: Path, rows: Sequence[Row], n_ranks: int) -> Row:
    """Write the summary of a run that has ended; returns it."""
    last = rows[-1]
    results: Row = {
        "job": spec.job,
        "fingerprint": spec.fingerprint(),
        "status": last["status"],
        "seed": spec.seed,
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "steps": sum(row["steps"] for row in rows),
        "seconds": round(sum(map(_seconds, rows)), 3),
        "n_parameters": last["n_parameters"],
        "stages": [{name: value for name, value in row.items() if name != "losses"} for row in rows],
        "n_workers": n_ranks,
        "hardware": hardware(),
        "n_cpus": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    write_text(out / RESULTS, to_json(results) + "\n")
    return results


def _seconds(row: Row) -> float:
    """Of training, of filling the cache, and of candidates, one after the other."""
    candidates = sum(each["seconds"] or 0 for each in row.get("candidates", ()))
    return float(row["seconds"] + row.get("cache_fill_seconds", 0) + candidates)


def failures(results: Row) -> list[str]:
    """What went wrong, a line each: candidates that could not be trained, and a stage that diverged."""
    found = []
    for row in results["stages"]:
        failed = {each["name"]: each["error"] for each in row.get("candidates", ()) if each.get("error")}
        texts = [f"candidate {name} failed: {error.strip().splitlines()[-1]}" for name, error in failed.items()]
        found += [f"stage {row['stage']}: {text}" for text in (*texts, divergence(row)) if text]
    return found


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """The rows of finished stages."""
    return [json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders]
