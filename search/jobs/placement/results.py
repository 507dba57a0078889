"""What a placement search found, in plain numbers: the content of `placements.json`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from models import Placement, placement_text
from search.budget.costs import DEAR_FIRST
from search.budget.dimensions import axis_label

Point = tuple[float, float]
PLACEMENTS = "placements.json"
"""The file of what a search found."""


@dataclass(frozen=True)
class Scored:
    """One placement with its score (higher is better), and its paired difference to the best of its budget.

    Numbers that are not finite, and errors that a single batch tells nothing of, are None.
    """

    placement: Placement
    score: float | None
    standard_error: float | None
    tasks: dict[str, float | None]
    difference: float | None
    difference_error: float | None
    cost: dict[str, float]
    is_admitted: bool

    @property
    def text(self) -> str:
        """The placement in short."""
        return placement_text(self.placement)


COLUMNS = ("budget", "name", *(field.name for field in fields(Scored)), "history")
"""Of the table of contenders, beside which each cost has one."""


@dataclass(frozen=True)
class BudgetResult:
    """What was found under one budget; `runners_up` are the next best, as many as were asked for.

    `importance` is, by the mixers that the budget counts, the gain of each in every slot that offers it, the rest being the best
    placement: what is lost by taking it away where it is, won by adding it where it is not; None where one of the two has no
    finite score. `rounds` are the scores of each round, `seen` the cost and score of every candidate, as far as they are finite.
    Of the evaluations `n_new` are of placements that the run had not asked for under a budget before.
    """

    budget: Any
    text: str
    best: Scored
    rivals: dict[str, Scored]
    runners_up: tuple[Scored, ...]
    importance: dict[str, dict[str, float | None]]
    rounds: tuple[tuple[float, ...], ...]
    seen: tuple[tuple[dict[str, float], float], ...]
    n_evaluations: int
    n_new: int
    seconds: float


@dataclass(frozen=True)
class PlacementResults:
    """The results of the budgets over one supernet; costs are at `context` positions, those that the user brings in `units`.

    `unmet` says of each budget under which nothing has a finite score what was looked at.
    """

    metric: str
    context: int
    slots: tuple[str, ...]
    names: tuple[str, ...]
    cost_axis: tuple[str, str]
    units: dict[str, str]
    budgets: tuple[BudgetResult, ...]
    unmet: tuple[str, ...]
    n_batch_evaluations_saved: int

    @property
    def front(self) -> list[Point]:
        """Of everything seen, what nothing cheaper beats: cost and score, cheapest first."""
        key = self.cost_axis[0]
        return pareto_front((cost[key], score) for result in self.budgets for cost, score in result.seen)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each contender under each budget."""
        return [
            {"budget": result.text, "name": name, **asdict(scored), "placement": scored.text, **scored.cost}
            for result in self.budgets
            for name, scored in (("search", result.best), *result.rivals.items())
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the texts stand beside the lists of names."""
        tree = {**asdict(self), "front": self.front}
        for result, told in zip(self.budgets, tree["budgets"], strict=True):
            told["best"]["text"] = result.best.text
            for name, rival in result.rivals.items():
                told["rivals"][name]["text"] = rival.text
            for number, scored in enumerate(result.runners_up):
                told["runners_up"][number]["text"] = scored.text
            told["n_seen"] = len(told.pop("seen"))
        return tree


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no point of at most their cost beats, cheapest first."""
    front: list[Point] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def cost_axis(costs: Sequence[dict[str, float]], units: Mapping[str, str]) -> tuple[str, str]:
    """The dimension that pictures are drawn over, and its label: the first one in which the placements differ.

    The costs that the user brings, which have `units`, come before `DEAR_FIRST`: they are what is cared for.
    """
    keys = [*units, *(key for keys in DEAR_FIRST for key in keys)]
    key = next((key for key in keys if len({cost[key] for cost in costs}) > 1), keys[-1])
    return key, axis_label(key, units)
