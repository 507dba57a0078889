"""What `show` says of a space: what each choice costs, and what the budgets come to."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from models import RackSpec, placement_text
from models.assembly.cost import space_cost
from search.budget import Budget
from search.budget.coding import slot_key
from search.budget.costs import CostTable
from search.budget.dimensions import cells, headings
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Strategy, best


def print_space(console: Console, space: RackSpec, context: int | None = None) -> None:
    """A row for each choice of the slots that have the same; then what is outside of them, and the ends of the range."""
    costs = CostTable.of(space, context)
    title = f"space: {len(costs.slots)} searchable slots, sequences of {costs.context}, {costs.dtype}"
    table = _table(title, ("where", "choice"), costs)
    by_sublayer = sorted(range(len(costs.slots)), key=lambda index: costs.slots[index].sublayer != "mixer")
    for _, group in groupby(by_sublayer, key=lambda index: str((costs.slots[index].sublayer, costs.choices[index]))):
        indices = list(group)
        first, last = (slot_key(costs.slots[index]) for index in (indices[0], indices[-1]))
        for number, (name, spent) in enumerate(costs.choices[indices[0]].items()):
            where = "" if number else first if first == last else f"{first} to {last}, each"
            table.add_row(where, escape(name), *cells(spent))
    table.add_row("outside", "", *cells(costs.base))
    table.add_section()
    order = costs.by_cost
    for label, placement in (
        ("main rack", tuple(slot.main for slot in costs.slots)),
        ("dearest", tuple(order(slot.names)[0] for slot in costs.slots)),
        ("cheapest", tuple(order(slot.names)[-1] for slot in costs.slots)),
    ):
        table.add_row(label, escape(placement_text(placement)), *cells(costs.of_placement(placement)))
    console.print(table)
    total = space_cost(space, costs.context).n_parameters
    console.print(f"the supernet holds {total:,} parameters, the weights of every choice")


def print_expected(console: Console, costs: dict[str, float], sampler: str) -> None:
    """What the placements of a sampler cost on average."""
    told = ", ".join(" ".join(told) for told in zip(cells(costs), headings(costs, {}), strict=True))
    console.print(f"a placement drawn by the sampler {sampler} costs on average: {told}", markup=False)


def print_budgets(console: Console, space: RackSpec, budgets: Sequence[Budget]) -> None:
    """A row for each budget: what a placement by hand, interleaved, costs within it."""
    table = _table("budgets, and what interleaving by hand costs within them", ("budget", "interleaved"), budgets[0].costs)
    by_hand: Strategy = STRATEGIES.build(STRATEGIES.part("interleave"))
    for budget in budgets:
        placement = best(by_hand.search(space, budget, _indifferent)).placement
        table.add_row(escape(budget.text()), escape(placement_text(placement)), *cells(budget.costs.of_placement(placement)))
    console.print(table)


def _indifferent(placements: Sequence[object]) -> list[float]:
    return [0.0] * len(placements)


def _table(title: str, names: Sequence[str], costs: CostTable) -> Table:
    return Table(
        *(Column(name, overflow="fold") for name in names),
        *(Column(label, justify="right", no_wrap=True) for label in headings(costs.base, costs.units)),
        title=title,
        title_justify="left",
        title_style="bold",
    )
