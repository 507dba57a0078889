"""What a placement may cost, a dimension a file: how each is priced, and how tables show it."""

from collections.abc import Iterable, Mapping

from configs import Registry
from search.budget.dimensions.shared.dimension import Dimension

DIMENSIONS = Registry("search.budget.dimensions", "budget dimension")


def dimensions() -> dict[str, Dimension]:
    """All dimensions by name, in the order of their columns."""
    found: dict[str, Dimension] = {name: kind() for name, kind in DIMENSIONS.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].column))


def headings(costs: Iterable[str]) -> list[str]:
    """What the columns of some costs are called."""
    return [dimensions()[name].label for name in costs]


def cells(costs: Mapping[str, float]) -> list[str]:
    """Costs as text, in their columns."""
    return [dimensions()[name].text(value) for name, value in costs.items()]
