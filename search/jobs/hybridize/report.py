"""What a conversion shows: the layers ranked, then who keeps how much of the model at which cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from configs.records import Row
from models import Placement
from search.budget.dimensions import cells, compared, headings
from search.jobs.hybridize.distil import Distilled
from search.jobs.hybridize.spec import HybridizeSpec
from search.jobs.placement.report import contenders_table
from search.jobs.placement.results import Scored
from search.runs.console import make_console, measured

SHOWN_LAYERS = 8
LONG = 12
"""Layers from which on a placement is shown by letters."""


@dataclass(frozen=True)
class HybridRow:
    """One contender under one budget: its score by the search's `metric`, then its KL on test data, as found and as distilled."""

    budget: str
    name: str
    metric: str
    scored: Scored
    kl_test: float
    distilled: Distilled | None

    @property
    def searched(self) -> float:
        """On the data of the search: KL to the model in nats if that was the metric, else the score; NaN if there is none."""
        if self.scored.score is None:
            return math.nan
        return max(0.0, -self.scored.score) if self.metric == "kl" else self.scored.score  # rounding may go below

    def to_dict(self) -> Row:
        """Plain values for JSON."""
        key = "kl" if self.metric == "kl" else "score"
        return {
            "budget": self.budget,
            "name": self.name,
            "placement": list(self.scored.placement),
            "text": self.scored.text,
            key: None if math.isnan(self.searched) else self.searched,
            f"{key}_error": self.scored.standard_error,
            "kl_test": self.kl_test if math.isfinite(self.kl_test) else None,
            "cost": self.scored.cost,
            **(self.distilled.to_dict() if self.distilled is not None else {}),
        }


def print_ranking(effects: Sequence[Row], metric: str) -> None:
    """The parts that cost least where they stand alone, and those that cost most."""
    console = make_console()
    key, what = ("kl", "KL to the model in nats") if metric == "kl" else ("score", f"{metric} score")
    for name in dict.fromkeys(row["name"] for row in effects):
        own = [row for row in effects if row["name"] == name]
        shown = own if len(own) <= 2 * SHOWN_LAYERS else [*own[:SHOWN_LAYERS], None, *own[-SHOWN_LAYERS:]]
        told = ", ".join("..." if row is None else f"{row['slot']} {row[key]:.4f}" for row in shown)
        console.print(f"{name} alone in a layer, {what}: {told}", markup=False)


def print_hybrids(rows: Sequence[HybridRow], whole: Mapping[str, float], spec: HybridizeSpec, context: int, out: Path) -> None:
    """A row a contender, best first within its budget; then the model itself."""
    console = make_console()
    units = {table.name: table.unit for table in spec.search.cost_tables}
    shown = [name for name in compared(rows[0].scored.cost) if len({row.scored.cost[name] for row in rows}) > 1]
    strips = _strips([row.scored.placement for row in rows])
    searched = "KL in search" if spec.search.metric == "kl" else f"{spec.search.metric} score"
    numbers = (searched, "KL found", "KL distilled", "perplexity", *headings(shown, units))
    table = contenders_table(numbers, f"distilled for {spec.distil.n_steps} steps")
    for budget in dict.fromkeys(row.budget for row in rows):
        own = sorted((row for row in rows if row.budget == budget), key=_rank)
        for number, row in enumerate(own):
            priced = cells({name: row.scored.cost[name] for name in shown})
            placed = escape(row.scored.text) if strips is None else "".join(strips[name] for name in row.scored.placement)
            who = (escape(budget) if number == 0 else "", escape(row.name), placed)
            table.add_row(*who, *_numbers(row), *priced)
        table.add_section()
    model = ["", "0", "", f"{math.exp(whole['loss']):.2f}"]
    table.add_row("", "the model", "", *model, *[""] * len(shown))
    console.print(table)
    for row in rows:
        if row.distilled is not None and row.distilled.error:
            told = row.distilled.error.strip().splitlines()[-1]
            console.print(f"{row.name} ({row.scored.text}) failed: {told}", markup=False)
    for row in rows:
        if row.distilled is not None and row.distilled.folders:
            folders = ", ".join(str(out / folder) for folder in row.distilled.folders)
            console.print(f"{row.budget}, {row.name}: {folders}", markup=False)
    console.print(f"any other as a model: search.load_model('{out}', placement='...')", markup=False)
    if strips is not None:
        console.print(f"placements: {', '.join(f'{letter} {name}' for name, letter in strips.items())}, first layer first")
    told = "as found and as distilled on test data, which nothing was picked by"
    console.print(f"KL to the model in nats: {told}; caches at {context:,} positions")
    if len(spec.distil.seeds) == 1:
        console.print("one seed: small differences may be chance; distil.seeds=[0,1,2] tells", markup=False)
    console.print(f"picture: {out / 'hybridize.png'}", markup=False)


def _strips(placements: Sequence[Placement]) -> dict[str, str] | None:
    """A letter for each name, where placements are long and that is enough to tell the names apart."""
    names = dict.fromkeys(name for placement in placements for name in placement)
    letters = {name: name[0] for name in names}
    return letters if len(placements[0]) > LONG and len(set(letters.values())) == len(names) else None


def _rank(row: HybridRow) -> tuple[bool, float]:
    value = row.kl_test if row.distilled is None else row.distilled.mean_kl
    return math.isnan(value), 0.0 if math.isnan(value) else value


def _numbers(row: HybridRow) -> list[str]:
    found = [measured(row.searched, row.scored.standard_error, form=".3f"), measured(row.kl_test, form=".3f")]
    if row.distilled is None:
        return [*found, "", ""]
    if row.distilled.error:
        return [*found, "failed", ""]
    return [*found, measured(row.distilled.mean_kl, row.distilled.standard_error, form=".3f"), f"{row.distilled.perplexity:.2f}"]
