"""The picture of a pipeline, pipeline.png: placements, and the losses that they came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.jobs.pipeline.report import PlacementRow
from search.jobs.placement.figure import draw_placements
from search.jobs.placement.results import PlacementResults
from search.runs.figures import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_picture(rows: Sequence[PlacementRow], found: PlacementResults, path: Path) -> None:
    """Left, who stands where; right, what it came to: test loss against cost."""
    ranked = [row for row in rows if not row.trained.error]
    with picture(path, 13, 1.6 + 0.34 * len(ranked)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        labelled = [(f"{row.budget}: {row.name}  {row.trained.loss:.3f}", row.scored) for row in ranked]
        draw_placements(left, labelled, found)
        _draw_losses(right, ranked, found.cost_axis)


def _draw_losses(axis: Axes, rows: Sequence[PlacementRow], cost_axis: tuple[str, str]) -> None:
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
    if names:  # else all racks have failed
        axis.legend(fontsize=8, frameon=False)
