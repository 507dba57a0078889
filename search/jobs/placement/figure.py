"""The pictures of a placement search: placements.png and search.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.jobs.placement.results import BudgetResult, PlacementResults, Point, Scored
from search.runs.console import measured
from search.runs.figures import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_pictures(results: PlacementResults, out: Path) -> None:
    """`placements.png`: who stands where, by budget; `search.png`: score against cost, and how the rounds went."""
    rows = [
        (f"{result.text}: {name}  {measured(scored.score, form='.3f')}", scored)
        for result in results.budgets
        for name, scored in _shown(result)
    ]
    with picture(out / "placements.png", 2.5 + 0.45 * len(results.slots), 1.2 + 0.32 * len(rows)) as figure:
        draw_placements(figure.subplots(), rows, results)
    with picture(out / "search.png", 12, 4.5) as figure:
        left, right = figure.subplots(1, 2)
        _draw_front(left, results)
        _draw_rounds(right, results)


def _shown(result: BudgetResult) -> list[tuple[str, Scored]]:
    return [("search", result.best), *((name, scored) for name, scored in result.rivals.items() if scored.is_admitted)]


def draw_placements(axis: Axes, rows: Sequence[tuple[str, Scored]], results: PlacementResults) -> None:
    """A line of coloured slots for each labelled placement."""
    colors = {name: f"C{index % 10}" for index, name in enumerate(results.names)}
    for row, (_, scored) in enumerate(rows):
        for column, name in enumerate(scored.placement):
            axis.barh(row, 0.94, left=column - 0.47, height=0.84, color=colors[name])
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axis.set_xticks(range(len(results.slots)), results.slots, fontsize=8)
    axis.invert_yaxis()
    axis.set_frame_on(False)
    axis.tick_params(length=0)
    used = [name for name in colors if any(name in scored.placement for _, scored in rows)]
    for name in used:
        axis.bar(0, 0, color=colors[name], label=name)  # an entry of the legend, and nothing to see
    if used:  # of racks that all failed there are none
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(used), frameon=False, fontsize=8)


def _draw_front(axis: Axes, results: PlacementResults) -> None:
    key, label = results.cost_axis
    everyone = [(cost[key], score) for result in results.budgets for cost, score in result.seen]
    _scatter(axis, everyone, s=8, color="lightgrey", label="scored on the way")
    rivals: dict[str, list[Point]] = {name: [] for result in results.budgets for name in result.rivals}
    for result in results.budgets:
        for name, scored in result.rivals.items():
            rivals[name] += [(scored.cost[key], scored.score)] if scored.score is not None else []
    for number, (name, points) in enumerate(rivals.items()):
        _scatter(axis, points, s=30, marker="sDv^<>ph"[number % 8], label=name, color=f"C{(number + 1) % 10}")
    found = [(result.best.cost[key], result.best.score) for result in results.budgets if result.best.score is not None]
    _scatter(axis, found, s=70, marker="*", color="C0", label="search", zorder=3)
    axis.plot(*zip(*results.front, strict=True), color="black", linewidth=0.8, label="Pareto front", drawstyle="steps-post")
    axis.set_xlabel(label)
    axis.set_ylabel(f"score ({results.metric}, higher is better)")
    axis.legend(fontsize=8, frameon=False)


def _scatter(axis: Axes, points: Sequence[Point], **style: Any) -> None:
    axis.scatter([x for x, _ in points], [y for _, y in points], **style)


def _draw_rounds(axis: Axes, results: PlacementResults) -> None:
    for number, result in enumerate(results.budgets):
        points = [(index, score) for index, scores in enumerate(result.rounds, start=1) for score in scores]
        _scatter(axis, points, s=6, alpha=0.35, color=f"C{number % 10}")
        peaks = [(index, max(scores)) for index, scores in enumerate(result.rounds, start=1) if scores]
        axis.plot(*zip(*peaks, strict=True), color=f"C{number % 10}", label=f"best of the round, {result.text}")
    axis.set_xlabel("round")
    axis.set_ylabel("score of the candidates")
    axis.legend(fontsize=8, frameon=False)
