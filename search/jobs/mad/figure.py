"""The picture of a MAD run, scores.png: a bar for each score, or curves over a difficulty."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from search.jobs.mad.scores import Scores
from search.runs.figures import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_NUMBERED = 8
"""Architectures up to which the numbers stand over the bars: more would lie over each other."""


def save_picture(scores: Scores, path: Path) -> None:
    """Scores as bars, and how each architecture learned the baseline of each task."""
    spec = scores.spec
    names, tasks = list(spec.architectures), list(spec.tasks)
    with picture(path, max(7.0, 3.2 * len(tasks)), 5.6) as figure:
        grid = figure.add_gridspec(2, len(tasks), height_ratios=(1.0, 1.1))
        _draw_bars(figure.add_subplot(grid[0, :]), scores)
        axes = [figure.add_subplot(grid[1, column]) for column in range(len(tasks))]
        for task, axis in zip(tasks, axes, strict=True):
            _draw_curves(axis, scores, task)
        axes[0].set_ylabel("accuracy while training")
        handles, labels = axes[0].get_legend_handles_labels()
        # An entry takes about 0.06 inches a letter, and 0.7 for its line and the gap.
        n_columns = max(1, int(figure.get_figwidth() / (0.06 * max(map(len, names)) + 0.7)))
        figure.legend(handles, labels, loc="outside upper center", ncols=n_columns, frameon=False)


def _look(scores: Scores, architecture: str) -> tuple[str, int]:
    """A colour, and how often all ten had been used before it: the next ten have other lines and a pattern."""
    index = list(scores.spec.architectures).index(architecture)
    return f"C{index % 10}", index // 10 % 3


def _draw_bars(axis: Axes, scores: Scores) -> None:
    names, tasks = list(scores.spec.architectures), list(scores.spec.tasks)
    width = 0.8 / len(names)
    columns: list[str | None] = [*tasks, *([None] if len(tasks) > 1 else [])]
    for number, name in enumerate(names):
        for column, task in enumerate(columns):
            found = scores.of(name, task)
            place = column + (number - (len(names) - 1) / 2) * width
            if found.value is None:
                axis.text(place, 0.02, "incomplete", rotation=90, ha="center", color="grey")
                continue
            color, times = _look(scores, name)
            pattern = ("", "////", "....")[times]
            axis.bar(place, found.value, width * 0.92, color=color, hatch=pattern, edgecolor="white", yerr=found.standard_error)
            if len(names) <= MOST_NUMBERED:
                axis.text(place, found.value, f"{found.value:.2f}", ha="center", va="bottom", fontsize=8)
    for column, task in enumerate(tasks):
        if (ceiling := scores.ceiling(task)) < 0.9995:
            axis.plot([column - 0.45, column + 0.45], [ceiling, ceiling], "k--", linewidth=0.8)
    axis.set_xticks(range(len(columns)), [(task or "mean").replace("-", " ") for task in columns])
    axis.set_ylim(0, 1.12)
    axis.set_ylabel("accuracy")


def _draw_curves(axis: Axes, scores: Scores, task: str) -> None:
    metric = scores.spec.train.stop_metric
    for name in scores.spec.architectures:
        color, times = _look(scores, name)
        cells = [cell for cell in scores.cells if (cell.architecture, cell.task, cell.change) == (name, task, "baseline")]
        best = [row for cell in cells if (row := cell.best(scores.spec.mode)) is not None]
        for number, row in enumerate(best):
            points = [(entry["step"], entry[metric]) for entry in row["history"]]
            axis.plot(
                *zip(*points, strict=True),
                color=color,
                linestyle=("-", "--", ":")[times],
                label=name if number == 0 else None,
                marker=".",
                markersize=3,
            )
        if not best:
            axis.plot([], [], color=color, label=name)
    axis.set_title(f"{task.replace('-', ' ')}, baseline", fontsize=9)
    axis.set_xlabel("step")
    axis.set_ylim(0, 1.05)
