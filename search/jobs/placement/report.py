"""What a placement search shows: tables in the terminal, and its pictures."""

from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from search.budget.dimensions import cells, headings
from search.jobs.placement.results import PlacementResults
from search.runs.console import duration, make_console


def print_results(results: PlacementResults, out: Path) -> None:
    """A row for what was found under each budget, with its rivals below it; then what each layer gains."""
    console = make_console()
    numbers = ("score", "to the best", *headings(results.budgets[0].best.cost))
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
        rivals = sorted(result.rivals.items(), key=lambda item: -item[1].score)
        rows = [("search", result.best), *rivals]
        for number, (name, scored) in enumerate(rows):
            outside = "" if scored.is_admitted else " (outside)"
            difference = "" if number == 0 else f"{scored.difference:+.4f} ±{scored.difference_error:.4f}"
            table.add_row(
                escape(result.text) if number == 0 else "",
                escape(name + outside),
                escape(scored.text),
                f"{scored.score:.4f} ±{scored.standard_error:.4f}",
                difference,
                *cells(scored.cost),
            )
        table.add_section()
    console.print(table)
    _print_importance(results)
    for result in results.budgets:
        told = f"{result.n_evaluations} placements scored, {result.n_new} of them for the first time, {duration(result.seconds)}"
        console.print(f"{result.text}: {told}", markup=False)
    if results.n_batch_evaluations_saved:
        console.print(f"racing saved {results.n_batch_evaluations_saved:,} evaluations of a batch")
    console.print(f"pictures: {out / 'placements.png'}, {out / 'search.png'}", markup=False)


def _print_importance(results: PlacementResults) -> None:
    table = Table(
        Column("budget", no_wrap=True),
        *(Column(slot, justify="right") for slot in results.importance_slots),
        title=f"gain of {results.dear} in each layer",
        title_justify="left",
        title_style="bold",
    )
    for result in results.budgets:
        table.add_row(escape(result.text), *(f"{gain:+.4f}" for gain in result.importance))
    make_console().print(table)
