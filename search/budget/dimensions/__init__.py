"""What a placement may cost, a dimension a file: how each is priced, and how tables show it."""

from collections.abc import Iterable, Mapping

from configs import Registry
from search.budget.dimensions.shared.dimension import Dimension

DIMENSIONS = Registry("search.budget.dimensions", "budget dimension")
CUSTOM_FORMAT = ",.4g"
"""Of numbers that the user brings, which may be of any size."""


def dimensions() -> dict[str, Dimension]:
    """All dimensions by name, in the order of their columns."""
    found: dict[str, Dimension] = {name: kind() for name, kind in DIMENSIONS.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].column))


def headings(costs: Iterable[str], units: Mapping[str, str]) -> list[str]:
    """What the columns of some costs are called; those that the user brings have `units`."""
    known = dimensions()
    return [_in_unit(name, units) if name in units else known[name].label for name in costs]


def axis_label(cost: str, units: Mapping[str, str]) -> str:
    """What a cost is called along the axis of a picture."""
    return _in_unit(cost, units) if cost in units else dimensions()[cost].axis_label


def cells(costs: Mapping[str, float]) -> list[str]:
    """Costs as text, in their columns."""
    known = dimensions()
    return [known[name].text(value) if name in known else format(value, CUSTOM_FORMAT) for name, value in costs.items()]


def compared(costs: Mapping[str, float]) -> dict[str, float]:
    """Those of the costs that a table with little room has columns for; what the user brings is among them."""
    known = dimensions()
    return {name: value for name, value in costs.items() if name not in known or known[name].is_compared}


def _in_unit(name: str, units: Mapping[str, str]) -> str:
    return f"{name}, {units[name]}"
