"""What a MAD run shows: the table of scores in the terminal, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from models import BackboneSpec
from models.cost import RackCost
from search.mad.scans import entry, setting_tables
from search.mad.scores import Scores
from search.pictures import picture
from search.progress import duration, make_console

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_NUMBERED = 8
"""Architectures up to which the numbers stand over the bars: more would lie over each other."""


def print_scores(scores: Scores, costs: Mapping[str, RackCost], out: Path) -> None:
    """The table: a row an architecture, a column a task, sizes beside them; settings one by one; what qualifies the figures."""
    spec, console = scores.spec, make_console()
    table = Table(title=f"MAD scores, mode {spec.mode}", title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("architecture")
    for name in (*spec.tasks, "mean", "parameters", "state", "time"):
        table.add_column(escape(name.replace("-", " ")), justify="right", overflow="fold")
    for name in spec.architectures:
        entries = [_entry(scores, name, task) for task in (*spec.tasks, None)]
        seconds = sum(row.get("seconds") or 0 for cell in scores.cells if cell.architecture == name for row in cell.rows)
        sizes = [f"{costs[name].n_parameters:,}", f"{costs[name].state:,}"] if name in costs else ["", ""]
        table.add_row(escape(name), *entries, *sizes, duration(seconds))
    if any(scores.ceiling(task) < 0.9995 for task in spec.tasks):
        table.add_section()
        table.add_row("best possible", *(f"{scores.ceiling(task):.3f}" for task in spec.tasks), "", "", "", "")
    console.print(table)
    for by_setting in setting_tables(scores):
        console.print(by_setting)
    for line in _notes(scores, costs):
        console.print(line, markup=False)
    console.print(f"picture: {out / 'scores.png'}", markup=False)


def _entry(scores: Scores, architecture: str, task: str | None) -> str:
    found = scores.of(architecture, task)
    return entry(found) + ("*" if found.value is not None and scores.problems(architecture, task) else "")


def _notes(scores: Scores, costs: Mapping[str, RackCost]) -> list[str]:
    spec = scores.spec
    if spec.mode == "mad":
        lines = ["accuracy: macro a batch, on the test set that also picks weights and grid point, as the MAD reference has it"]
    else:
        lines = ["accuracy: share of asked positions that are right, on a test set that nothing was picked by"]
    n_settings = sum(1 for _ in spec.settings()) // len(spec.architectures)
    grid = f"{len(spec.lrs)} learning rate(s) x {len(spec.weight_decays)} weight decay(s)"
    lines.append(
        f"each score: best of {f'{spec.sweep.n_samples} draws' if spec.sweep.method == 'optuna' else grid}, "
        f"mean over difficulty settings ({n_settings} in all) and {len(spec.seeds)} seed(s)"
    )
    first, task = next(iter(spec.tasks.items()))
    lines.append(f"parameters, state: at the baseline of {first}, sequences of {task.instance().seq_len}")
    for name in spec.architectures:
        if problems := scores.problems(name):
            lines.append(f"* {name}: " + ", ".join(f"{count} trial(s) {what}" for what, count in problems.items()))
    lines += [f"note, {name}: {warning}" for name, costed in costs.items() for warning in costed.warnings]
    ahead = ", ".join(name for name, task in spec.tasks.items() if task.instance().answers_stand_ahead)
    if ahead:
        said = f"looks ahead (causal = false), and on {ahead} the answers stand in the input: these scores mean nothing"
        lines += [f"note, {name}: {said}" for name, backbone in spec.architectures.items() if backbone and looks_ahead(backbone)]
    errors = {row["error"].strip().splitlines()[-1] for cell in scores.cells for row in cell.rows if row.get("error")}
    return lines + [f"error: {error}" for error in sorted(errors)]


def looks_ahead(backbone: BackboneSpec) -> bool:
    """Whether a mixer of the rack is told to: what it then sees of a position comes from after it."""
    mixers = [block.mixer.options() for stack in backbone.stacks for block in stack.expanded() if block.mixer is not None]
    mixers += [inner.options() for options in mixers for inner in options.get("mixers", {}).values() if inner is not None]
    return any(options.get("causal") is False for options in mixers)


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
