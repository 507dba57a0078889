"""The picture of a conversion, hybridize.png: which layers keep their attention, and KL to the model against the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.jobs.hybridize.report import HybridRow
from search.jobs.placement.figure import draw_placements
from search.jobs.placement.results import PlacementResults
from search.runs.figures import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_picture(rows: Sequence[HybridRow], found: PlacementResults, path: Path) -> None:
    """Left, who keeps the attention where; right, what that comes to on test data."""
    with picture(path, 13, 2.4 + 0.34 * len(rows)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        labelled = [(f"{row.budget}: {row.name}  {_told(row)}", row.scored) for row in rows]
        draw_placements(left, labelled, found)
        _draw_divergences(right, rows, found.cost_axis)


def _told(row: HybridRow) -> str:
    if row.distilled is None or row.distilled.error:
        return f"{row.kl_test:.3f}"
    return f"{row.kl_test:.3f} -> {row.distilled.mean_kl:.3f}"


def _draw_divergences(axis: Axes, rows: Sequence[HybridRow], cost_axis: tuple[str, str]) -> None:
    key, label = cost_axis
    for number, name in enumerate(dict.fromkeys(row.name for row in rows)):
        own, color = [row for row in rows if row.name == name], f"C{number % 10}"
        style: dict[str, Any] = {"marker": "*", "s": 150, "zorder": 3} if name == "search" else {"marker": "sDv^<>ph"[number % 8]}
        found = [(row.scored.cost[key], row.kl_test) for row in own]
        done = [(row.scored.cost[key], row.distilled.mean_kl) for row in own if row.distilled and not row.distilled.error]
        axis.scatter(*zip(*found, strict=True), facecolors="none", edgecolors=color, label=f"{name}, found", **style)
        if done:
            axis.scatter(*zip(*done, strict=True), color=color, label=f"{name}, distilled", **style)
    if any(row.kl_test > 0 for row in rows):  # the model itself has none
        axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.set_ylabel("KL to the model, nats")
    axis.legend(fontsize=8, frameon=False)
