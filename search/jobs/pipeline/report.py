"""What a pipeline shows: the comparison of the trained racks, as a table and a picture."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from search.budget.dimensions import cells, compared, headings
from search.jobs.pipeline.retrain import RetrainedRack
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement.report import contenders_table
from search.jobs.placement.results import Scored
from search.runs.console import make_console, measured


@dataclass(frozen=True)
class PlacementRow:
    """One contender under one budget: what the supernet said of it, and what it came to on its own."""

    budget: str
    name: str
    scored: Scored
    trained: RetrainedRack

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "budget": self.budget,
            "name": self.name,
            "placement": list(self.scored.placement),
            "text": self.scored.text,
            "supernet_score": self.scored.score,
            "loss": None if self.trained.error else self.trained.loss,
            "standard_error": self.trained.standard_error,
            "losses": self.trained.losses,
            "accuracies": {task: statistics.fmean(values) for task, values in self.trained.accuracies.items()},
            "cost": self.scored.cost,
            "seconds": self.trained.seconds,
            "folders": list(self.trained.folders),
            "error": self.trained.error,
        }


def print_comparison(rows: Sequence[PlacementRow], spec: PipelineSpec, out: Path) -> None:
    """A row a contender, best first within its budget."""
    units = {table.name: table.unit for table in spec.placement.cost_tables}
    console, tasks = make_console(), list(spec.supernet.data.tasks)
    n_steps = spec.retrain.n_steps or spec.supernet.n_steps
    numbers = ("test loss", *(f"{task} acc." for task in tasks), "supernet", *headings(compared(rows[0].scored.cost), units))
    table = contenders_table(numbers, f"trained from scratch for {n_steps} steps")
    for budget in dict.fromkeys(row.budget for row in rows):
        own = sorted(
            (row for row in rows if row.budget == budget),
            key=lambda row: (bool(row.trained.error), 0 if row.trained.error else row.trained.loss),
        )
        for number, row in enumerate(own):
            table.add_row(escape(budget) if number == 0 else "", escape(row.name), escape(row.scored.text), *_numbers(row, tasks))
        table.add_section()
    console.print(table)
    for row in rows:
        if row.trained.error:
            console.print(f"{row.name} ({row.scored.text}) failed: {row.trained.error.strip().splitlines()[-1]}", markup=False)
    for budget, name, folders in ((row.budget, row.name, row.trained.folders) for row in rows):
        console.print(f"{budget}, {name}: {', '.join(str(out / folder) for folder in folders)}", markup=False)
    console.print(
        f"accuracy and loss on test data that nothing was picked by; supernet: {spec.placement.metric} score of the search"
    )
    if len(spec.retrain.seeds) == 1:
        console.print(
            "one seed: differences of a few hundredths of a nat may be chance; retrain.seeds=[0,1,2] tells", markup=False
        )
    console.print(f"picture: {out / 'pipeline.png'}", markup=False)


def _numbers(row: PlacementRow, tasks: Sequence[str]) -> list[str]:
    supernet = [measured(row.scored.score, form=".3f"), *cells(compared(row.scored.cost))]
    if row.trained.error:
        return ["failed", *([""] * len(tasks)), *supernet]
    accuracies = [f"{statistics.fmean(row.trained.accuracies[task]):.3f}" for task in tasks]
    return [measured(row.trained.loss, row.trained.standard_error, form=".3f"), *accuracies, *supernet]
