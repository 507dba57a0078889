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
    """Left, who keeps the attention where; right, what that comes to: hollow as found, filled as distilled."""
    with picture(path, 13, 1.8 + 0.34 * len(rows)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        labelled = [(f"{row.budget}: {row.name}  {_told(row)}", row.scored) for row in rows]
        draw_placements(left, labelled, found)
        _draw_divergences(right, rows, found.cost_axis)


def _told(row: HybridRow) -> str:
    if row.distilled is None or row.distilled.error:
        return f"{row.kl:.3f}"
    return f"{row.kl:.3f} -> {row.distilled.mean_kl:.3f}"


def _draw_divergences(axis: Axes, rows: Sequence[HybridRow], cost_axis: tuple[str, str]) -> None:
    key, label = cost_axis
    for number, name in enumerate(dict.fromkeys(row.name for row in rows)):
        own = [row for row in rows if row.name == name]
        style: dict[str, Any] = {"marker": "*", "s": 150, "zorder": 3} if name == "search" else {"marker": "sDv^<>ph"[number % 8]}
        color = f"C{number % 10}"
        axis.scatter([row.scored.cost[key] for row in own], [row.kl for row in own], facecolors="none", edgecolors=color, **style)
        done = [row for row in own if row.distilled is not None and not row.distilled.error]
        for row in done:
            assert row.distilled is not None
            cost = row.scored.cost[key]
            axis.annotate(
                "", (cost, row.distilled.mean_kl), (cost, row.kl), arrowprops={"arrowstyle": "->", "color": color, "lw": 0.8}
            )
        axis.scatter(
            [row.scored.cost[key] for row in done],
            [row.distilled.mean_kl for row in done if row.distilled is not None],
            color=color,
            label=name,
            **style,
        )
    axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.set_ylabel("KL to the model, nats (hollow: found, filled: distilled)")
    axis.legend(fontsize=8, frameon=False)
