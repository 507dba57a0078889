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

from configs import Problems, Spec
from configs.errors import Location
from configs.registry import Part
from models import RackSpec, parse_placement
from search.budget import Budget, BudgetValue
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
    `latency_table` is a file that `python -m search profile` wrote, for budgets in `latency_ms`. `importance` measures what each
    counted mixer gains in each slot around the best placement: as many evaluations as there are slots. The `n_best` placements
    under each budget are told of.
    """

    short_forms = ("beam_width",)
    budgets: Annotated[tuple[BudgetValue, ...], Field(min_length=1)]
    strategy: STRATEGIES.field() = Field(default_factory=lambda: STRATEGIES.part("beam"))  # type: ignore[valid-type]
    rivals: dict[str, Rival] = Field(default_factory=_by_hand)
    latency_table: str | None = None
    importance: bool = True
    n_best: PositiveInt = 1

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand `beam_width`, and the names of strategies."""
        if "beam_width" in raw:
            width, strategy = raw.pop("beam_width"), raw.get("strategy") or "beam"
            strategy = {"kind": strategy} if isinstance(strategy, str) else dict(strategy)
            if strategy.get("kind") == "beam":
                raw["strategy"] = {**strategy, "width": width}
            else:
                problems.add(("beam_width",), f"the strategy is {strategy.get('kind')}, only beam has a width", width)
        if isinstance(raw.get("rivals"), list | tuple):
            raw["rivals"] = {str(name): name for name in raw["rivals"]}
        return raw

    def problems_in(self, space: RackSpec, latency: LatencyTable | None = None) -> Iterator[tuple[Location, str]]:
        """What cannot be in a space: budgets, options of strategies, rivals that are none of its placements.

        Without a `latency` table nothing that needs one is looked at.
        """
        budgets = []
        for index, value in enumerate(self.budgets if latency or self.latency_table is None else ()):
            try:
                budgets.append(Budget.of(value, space, latency=latency))
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


class PlacementSpec(SearchSpec):
    """The search over a supernet that is trained: `supernet` is the folder of its run."""

    job: Literal["placement"] = "placement"
    supernet: str
