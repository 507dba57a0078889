"""What a placement search shows: tables in the terminal, and its pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from search.budget.dimensions import cells, headings
from search.jobs.placement.results import PlacementResults
from search.runs.console import duration, make_console, measured


def print_results(results: PlacementResults, out: Path) -> None:
    """A row for what was found under each budget, with its rivals below it; then what each layer gains."""
    console = make_console()
    numbers = ("score", "to the best", *headings(results.budgets[0].best.cost, results.units))
    table = Table(
        Column("budget", no_wrap=True),
        "who",
        Column("placement", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        title=f"placements by {results.metric}, on the supernet; costs at {results.context} positions",
        title_justify="left",
        title_style="bold",
    )
    for result in results.budgets:
        rivals = sorted(result.rivals.items(), key=lambda item: math.inf if item[1].score is None else -item[1].score)
        rows = [("search", result.best), *rivals]
        for number, (name, scored) in enumerate(rows):
            outside = "" if scored.is_admitted else " (outside)"
            difference = "" if number == 0 else measured(scored.difference, scored.difference_error, form="+.4f")
            table.add_row(
                escape(result.text) if number == 0 else "",
                escape(name + outside),
                escape(scored.text),
                measured(scored.score, scored.standard_error),
                difference,
                *cells(scored.cost),
            )
        table.add_section()
    console.print(table)
    for name in dict.fromkeys(name for result in results.budgets for name in result.importance):
        _print_importance(results, name)
    for result in results.budgets:
        told = f"{result.n_evaluations} placements scored, {result.n_new} of them for the first time, {duration(result.seconds)}"
        console.print(f"{result.text}: {told}", markup=False)
    for text in results.unmet:
        console.print(text, markup=False)
    if results.n_batch_evaluations_saved:
        console.print(f"racing saved {results.n_batch_evaluations_saved:,} evaluations of a batch")
    console.print(f"each of these as a model: search.load_model('{out}', placement='...')", markup=False)
    console.print(f"pictures: {out / 'placements.png'}, {out / 'search.png'}", markup=False)


def contenders_table(numbers: Sequence[str], title: str) -> Table:
    """A table without rows: budget, who and placement, then the columns of numbers."""
    return Table(
        Column("budget", no_wrap=True),
        Column("who", no_wrap=True),
        Column("placement", overflow="fold", min_width=24),
        *(Column(name, justify="right") for name in numbers),
        title=title,
        title_justify="left",
        title_style="bold",
    )


def _print_importance(results: PlacementResults, name: str) -> None:
    counted = [result for result in results.budgets if name in result.importance]
    table = Table(
        Column("budget", no_wrap=True),
        *(Column(slot, justify="right") for slot in counted[0].importance[name]),
        title=f"gain of {escape(name)} in each layer",
        title_justify="left",
        title_style="bold",
    )
    for result in counted:
        gains = result.importance[name].values()
        table.add_row(escape(result.text), *(measured(gain, form="+.4f") for gain in gains))
    make_console().print(table)
