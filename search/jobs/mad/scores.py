"""From trial rows to MAD scores: the best of each grid, the mean over settings, standard errors over seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.records import Row
from search.jobs.mad.spec import MadSpec


@dataclass(frozen=True)
class TaskScore:
    """A mean over seeds; `value` is None where a setting has no trial to score, `standard_error` None with a single seed."""

    value: float | None
    standard_error: float | None

    @classmethod
    def over_seeds(cls, values: Sequence[float | None]) -> TaskScore:
        """Mean and standard error; None if any seed is missing."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return cls(None, None)
        error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
        return cls(statistics.fmean(known), error)


@dataclass
class Cell:
    """The grid of one architecture on one setting with one seed: its best trial, and what became of the others."""

    architecture: str
    task: str
    change: str
    seed: int
    n_expected: int
    rows: list[Row] = field(default_factory=list)

    def count(self, *statuses: str) -> int:
        """Trials with one of the statuses."""
        return sum(row["status"] in statuses for row in self.rows)

    @property
    def n_missing(self) -> int:
        """Trials that have not run."""
        return max(0, self.n_expected - len(self.rows))

    def best(self, mode: str) -> Row | None:
        """The trial that stands for the grid: `mad` picks by test accuracy, `clean` by validation accuracy.

        A trial that diverged stands with the best weights it had before; it is counted as diverged all the same.
        """
        rows = [row for row in self.rows if row.get("test_accuracy") is not None]
        if mode == "mad":
            return max(rows, key=lambda row: row["test_macro_accuracy"], default=None)
        return max(rows, key=lambda row: (row["held_out_accuracy"], -row["held_out_loss"]), default=None)

    def score(self, mode: str) -> float | None:
        """The test accuracy of the best trial: macro a batch in mode `mad`, over all asked positions in mode `clean`."""
        row = self.best(mode)
        return None if row is None else row["test_macro_accuracy" if mode == "mad" else "test_accuracy"]


@dataclass
class Scores:
    """All cells of a run, and what they add up to."""

    spec: MadSpec
    cells: list[Cell]

    def of(self, architecture: str, task: str | None = None, change: str | None = None) -> TaskScore:
        """The score of an architecture on a task (or on one setting of it), or its mean over all tasks."""
        tasks = list(self.spec.tasks) if task is None else [task]
        per_seed = []
        for seed in self.spec.seeds:
            means = [self._task_mean(architecture, name, change, seed) for name in tasks]
            known = [mean for mean in means if mean is not None]
            per_seed.append(statistics.fmean(known) if len(known) == len(means) else None)
        return TaskScore.over_seeds(per_seed)

    def _task_mean(self, architecture: str, task: str, change: str | None, seed: int) -> float | None:
        wanted = (architecture, task, seed)
        cells = [cell for cell in self.cells if (cell.architecture, cell.task, cell.seed) == wanted]
        values = [cell.score(self.spec.mode) for cell in cells if change in (None, cell.change)]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    def ceiling(self, task: str, change: str | None = None) -> float:
        """The best score that is reachable: below 1 where training cannot show everything that is asked."""
        settings = [setting for name, setting in self.spec.tasks[task].settings().items() if change in (None, name)]
        return statistics.fmean(setting.instance().ceiling(setting.n_train) for setting in settings)

    def problems(self, architecture: str | None = None, task: str | None = None) -> dict[str, int]:
        """How many trials diverged, failed or have not run, of those that did; empty if all is well."""
        cells = [c for c in self.cells if architecture in (None, c.architecture) and task in (None, c.task)]
        counts = {
            "diverged": sum(cell.count("diverged") for cell in cells),
            "failed": sum(cell.count("failed") for cell in cells),
            "stopped by ASHA": sum(cell.count("pruned") for cell in cells),
            "not run": sum(cell.n_missing for cell in cells),
        }
        return {name: count for name, count in counts.items() if count}


def score(spec: MadSpec, rows: Sequence[Row]) -> Scores:
    """Sort rows into cells; rows that are not of this spec are left out."""
    by_cell: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        by_cell[row["architecture"], row["task"], row["change"], row["seed"]].append(row)
    # A draw that failed was made up for by another; a trial of a grid that failed is replaced under its own key.
    n_expected = spec.sweep.n_samples if spec.sweep.method == "optuna" else len(spec.lrs) * len(spec.weight_decays)
    cells = []
    for setting in spec.settings():
        for seed in spec.seeds:
            place = (setting.architecture, setting.task, setting.change, seed)
            ran = [row for row in by_cell[place] if row["status"] != "failed"]
            cells.append(Cell(*place, n_expected, ran if len(ran) >= n_expected else by_cell[place]))
    return Scores(spec, cells)


def to_summary(scores: Scores, sizes: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The content of `results.json`: plain numbers, null where there is none."""
    spec = scores.spec
    columns: list[str | None] = [*spec.tasks, None]
    table = {name: {task or "mean": scores.of(name, task) for task in columns} for name in spec.architectures}
    return {
        "job": "mad",
        "mode": spec.mode,
        "fingerprint": spec.fingerprint(),
        "metric": "macro accuracy per batch, best of grid on test"
        if spec.mode == "mad"
        else "accuracy, best of grid on validation",
        "complete": all(scores.of(name).value is not None for name in spec.architectures)
        and not {"not run", "failed"} & scores.problems().keys(),
        "problems": scores.problems(),
        "scores": {name: {task: entry.value for task, entry in row.items()} for name, row in table.items()},
        "standard_errors": {name: {task: entry.standard_error for task, entry in row.items()} for name, row in table.items()},
        "ceilings": {task: scores.ceiling(task) for task in spec.tasks},
        "sizes": sizes,
        "settings": [_cell_summary(cell, spec.mode) for cell in scores.cells],
    }


def _cell_summary(cell: Cell, mode: str) -> dict[str, Any]:
    best = cell.best(mode) or {}
    return {
        **{name: getattr(cell, name) for name in ("architecture", "task", "change", "seed", "n_expected", "n_missing")},
        "n_diverged": cell.count("diverged"),
        "n_failed": cell.count("failed"),
        "n_pruned": cell.count("pruned"),
        "score": cell.score(mode),
        **{f"best_{name}": best.get(name) for name in ("key", "lr", "weight_decay", "steps", "best_step", "seconds")},
    }
