"""What a placement search is: budgets, strategy, rivals, and how candidates are scored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PlainValidator,
    PositiveInt,
    SerializeAsAny,
    WithJsonSchema,
    model_validator,
)

from configs import ConfigError, Problems, Spec
from configs.errors import Location
from configs.load import read_yaml
from configs.registry import Part
from models import RackSpec, parse_placement
from search.budget import Budget, BudgetValue
from search.budget.custom import CustomCost
from search.budget.dimensions import dimensions
from search.budget.pins import SETTINGS
from search.jobs.placement.results import COLUMNS
from search.profiling.latency import LatencyTable
from search.runs.workers import ScorerSpec
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Strategy


class ScoringSpec(Spec):
    """How candidates are scored: by `metric` over `n_batches` batches of `batch_size` held-out instances of each task.

    The batches are the same for every candidate, and tasks count by their weights in the training mixture. `race` drops
    candidates as soon as they are surely behind, at `confidence`; it needs more than eight batches. `max_eval_memory` bounds the
    bytes of hidden states and logits. `workers` score on Ray.
    """

    outside_fingerprint = ("workers", "max_eval_memory")
    metric: Literal["loss", "accuracy", "kl"] = "loss"
    n_batches: PositiveInt = 16
    batch_size: PositiveInt = 32
    positions_per_row: PositiveInt | None = None
    race: bool = False
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    max_eval_memory: PositiveInt = 2**30
    workers: ScorerSpec = ScorerSpec()

    @model_validator(mode="after")
    def _check_race(self) -> Self:
        from search.evaluation.racing import FIRST_LOOK

        if self.race and self.n_batches <= FIRST_LOOK:
            problems = Problems()
            text = (
                f"{self.n_batches} batches are too few for a race, which looks after {FIRST_LOOK} first: give more, smaller ones"
            )
            problems.add(("n_batches",), text)
            problems.raise_if_any(type(self).__name__)
        return self


def _rival(value: Any) -> Any:
    """A rival is a placement's text, or a strategy."""
    return value if isinstance(value, str) and value not in STRATEGIES else STRATEGIES.part(value)


Rival = Annotated[SerializeAsAny[Part] | str, PlainValidator(_rival), WithJsonSchema({})]


def _by_hand() -> dict[str, Any]:
    return {name: STRATEGIES.part(name) for name in ("interleave", "bookend")}


class SearchSpec(ScoringSpec):
    """A search over the placements of a supernet.

    `budgets` are searched one after the other over one log of scores: a number is so many layers of the main mixer, a mapping
    says more (`search/budget/`). `beam_width` is short for the strategy `{kind: beam, width: ...}`. `rivals` stand beside what
    is found: a strategy (`interleave`, `bookend`, `random`, ...) for each budget, or one placement's text (`all:gdn`).
    `latency_table` is a file that `python -m search profile` wrote, for budgets in `latency_ms`. `cost_tables` are costs of one's
    own, each a `CustomCost` or the YAML or JSON file of one: what is in a file becomes part of the spec, so that a run folder
    tells when it has changed. `importance` measures what each counted mixer gains in each slot around the best placement: as many
    evaluations as there are slots. The `n_best` placements under each budget are told of.
    """

    short_forms = ("beam_width",)
    budgets: Annotated[tuple[BudgetValue, ...], Field(min_length=1)]
    strategy: STRATEGIES.field() = Field(default_factory=lambda: STRATEGIES.part("beam"))  # type: ignore[valid-type]
    rivals: dict[str, Rival] = Field(default_factory=_by_hand)
    latency_table: str | None = None
    cost_tables: tuple[CustomCost, ...] = ()
    importance: bool = True
    n_best: PositiveInt = 1

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand `beam_width`, and the names of strategies; read the files of `cost_tables`."""
        if "beam_width" in raw:
            width, strategy = raw.pop("beam_width"), raw.get("strategy") or "beam"
            strategy = {"kind": strategy} if isinstance(strategy, str) else dict(strategy)
            if strategy.get("kind") == "beam":
                raw["strategy"] = {**strategy, "width": width}
            else:
                problems.add(("beam_width",), f"the strategy is {strategy.get('kind')}, only beam has a width", width)
        if isinstance(raw.get("rivals"), list | tuple):
            raw["rivals"] = {str(name): name for name in raw["rivals"]}
        if isinstance(raw.get("cost_tables"), list | tuple):
            raw["cost_tables"] = [
                tree for index, value in enumerate(raw["cost_tables"]) for tree in _trees(value, index, problems)
            ]
        return raw

    @model_validator(mode="after")
    def _check_cost_tables(self) -> Self:
        problems, names = Problems(), [table.name for table in self.cost_tables]
        for index, name in enumerate(names):
            for what, known in (
                ("a built-in cost", tuple(dimensions())),
                ("a key of budgets", SETTINGS),
                ("a column of results", COLUMNS),
                ("another table", names[:index]),
            ):
                if name in known:
                    problems.add(("cost_tables", index, "name"), f"'{name}' is the name of {what}: call the cost otherwise")
        problems.raise_if_any(type(self).__name__)
        return self

    def problems_in(self, space: RackSpec, latency: LatencyTable | None = None) -> Iterator[tuple[Location, str]]:
        """What cannot be in a space: budgets, options of strategies, rivals that are none of its placements.

        Without a `latency` table nothing that needs one is looked at.
        """
        does_fit, budgets = True, []
        for index, table in enumerate(self.cost_tables):
            try:
                table.by_slot(space)
            except ConfigError as error:
                does_fit = False
                yield ("cost_tables", index), str(error)
        for index, value in enumerate(self.budgets if does_fit and (latency or self.latency_table is None) else ()):
            try:
                budgets.append(Budget.of(value, space, latency=latency, custom=self.cost_tables))
            except ValueError as error:
                yield ("budgets", index), str(error)
        parts: dict[Location, Part | str] = {("strategy",): self.strategy}
        for location, part in (parts | {("rivals", name): rival for name, rival in self.rivals.items()}).items():
            try:
                if isinstance(part, str):
                    parse_placement(part, space.slots())
                    continue
                for budget in budgets:
                    strategy: Strategy = STRATEGIES.build(part)
                    next(strategy.rounds(budget), None)
            except ValueError as error:
                yield location, str(error)

    def latencies(self) -> LatencyTable | None:
        """The measured table, if one is named; ConfigError if it cannot be read."""
        return None if self.latency_table is None else LatencyTable.load(Path(self.latency_table))


def _trees(value: Any, index: int, problems: Problems) -> list[Any]:
    """What is in a file that is named, or nothing if it cannot be read; any other value as it is."""
    if not isinstance(value, str):
        return [value]
    try:
        return [read_yaml(value)]
    except ConfigError as error:
        problems.add(("cost_tables", index), str(error))
        return []


class PlacementSpec(SearchSpec):
    """The search over a supernet that is trained: `supernet` is the folder of its run."""

    job: Literal["placement"] = "placement"
    supernet: str
