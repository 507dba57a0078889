"""What a pipeline shows: the comparison of the trained racks, as a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from search.pictures import picture
from search.pipeline.spec import PipelineSpec
from search.placement.report import draw_placements
from search.placement.results import PlacementResults, Scored
from search.progress import make_console
from search.retrain import Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Row:
    """One contender under one budget: what the supernet said of it, and what it came to on its own."""

    budget: str
    name: str
    scored: Scored
    trained: Trained

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "budget": self.budget,
            "name": self.name,
            "placement": list(self.scored.placement),
            "text": self.scored.text,
            "supernet_score": self.scored.score,
            "loss": self.trained.loss,
            "standard_error": self.trained.standard_error,
            "losses": self.trained.losses,
            "accuracies": {task: statistics.fmean(values) for task, values in self.trained.accuracies.items()},
            "cost": self.scored.cost,
            "seconds": self.trained.seconds,
            "error": self.trained.error,
        }


def print_comparison(rows: Sequence[Row], spec: PipelineSpec, out: Path) -> None:
    """A row a contender, best first within its budget."""
    console, tasks = make_console(), list(spec.supernet.data.tasks)
    n_steps = spec.retrain.n_steps or spec.supernet.n_steps
    title = f"trained from scratch for {n_steps} steps"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("budget", no_wrap=True)
    table.add_column("who", no_wrap=True)
    table.add_column("placement", overflow="fold", min_width=24)
    for name in ("test loss", *(f"{task} acc." for task in tasks), "supernet", "KV bytes", "state bytes", "params"):
        table.add_column(name, justify="right")
    for budget in dict.fromkeys(row.budget for row in rows):
        own = sorted((row for row in rows if row.budget == budget), key=lambda row: (bool(row.trained.error), row.trained.loss))
        for number, row in enumerate(own):
            table.add_row(escape(budget) if number == 0 else "", escape(row.name), escape(row.scored.text), *_numbers(row, tasks))
        table.add_section()
    console.print(table)
    for row in rows:
        if row.trained.error:
            console.print(f"{row.name} ({row.scored.text}) failed: {row.trained.error.strip().splitlines()[-1]}", markup=False)
    console.print(
        f"accuracy and loss on test data that nothing was picked by; supernet: {spec.placement.metric} score of the search"
    )
    if len(spec.retrain.seeds) == 1:
        console.print(
            "one seed: differences of a few hundredths of a nat may be chance; retrain.seeds=[0,1,2] tells", markup=False
        )
    console.print(f"picture: {out / 'pipeline.png'}", markup=False)


def _numbers(row: Row, tasks: Sequence[str]) -> list[str]:
    cost = [f"{row.scored.cost[key]:,.0f}" for key in ("kv_bytes", "state_bytes", "params")]
    if row.trained.error:
        return ["failed", *([""] * len(tasks)), f"{row.scored.score:.3f}", *cost]
    error = "" if row.trained.standard_error is None else f" ±{row.trained.standard_error:.3f}"
    accuracies = [f"{statistics.fmean(row.trained.accuracies[task]):.3f}" for task in tasks]
    return [f"{row.trained.loss:.3f}{error}", *accuracies, f"{row.scored.score:.3f}", *cost]


def save_picture(rows: Sequence[Row], found: PlacementResults, path: Path) -> None:
    """Left, who stands where; right, what it came to: test loss against cost."""
    ranked = [row for row in rows if not row.trained.error]
    with picture(path, 13, 1.6 + 0.34 * len(ranked)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        labelled = [(f"{row.budget}: {row.name}  {row.trained.loss:.3f}", row.scored) for row in ranked]
        draw_placements(left, labelled, found)
        _draw_losses(right, ranked, found.cost_axis)


def _draw_losses(axis: Axes, rows: Sequence[Row], cost_axis: tuple[str, str]) -> None:
    key, label = cost_axis
    names = list(dict.fromkeys(row.name for row in rows))
    for number, name in enumerate(names):
        own = [row for row in rows if row.name == name]
        style: dict[str, Any] = (
            {"marker": "*", "s": 130, "zorder": 3} if name == "search" else {"marker": "sDv^<>ph"[number % 8], "s": 40}
        )
        axis.scatter(
            [row.scored.cost[key] for row in own], [row.trained.loss for row in own], color=f"C{number % 10}", label=name, **style
        )
    axis.set_xlabel(label)
    axis.set_ylabel("test loss, nats")
    axis.legend(fontsize=8, frameon=False)
