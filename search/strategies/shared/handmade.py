"""Placements as people write them by hand: one mixer in some layers, another in the rest."""

from collections.abc import Callable

import numpy as np

from configs import ConfigError
from configs.errors import known_names
from models.spec.placement import Placement
from search.budget import Budget

Places = Callable[[int, int], list[int]]
"""Which `n` of `total` slots."""


def handmade(budget: Budget, name: str | None, rest: str | None, places: Places) -> Placement:
    """`name` (the dearest, if not given) at the most places that the budget admits, `rest` (the cheapest) elsewhere.

    A slot that has `name`, but not `rest`, takes its cheapest, and one that has neither stays at its main choice. Where the
    budget admits no such placement, it is the nearest that it does.

    Raises:
        ConfigError: for a name that no slot offers.
    """
    slots, costs = budget.coding.slots, budget.costs
    for option, given in (("name", name), ("rest", rest)):
        if given is not None and given not in budget.coding.names:
            raise ConfigError(f"{option}: no layer has '{given}'; {known_names(given, budget.coding.names)}")
    chosen = name or costs.by_cost()[0]
    holders = [index for index, slot in enumerate(slots) if chosen in slot.names]
    cheapest = {index: costs.dear_to_cheap_in(index)[-1] for index in holders}
    others = [rest if rest in slot.names else cheapest.get(index, slot.main) for index, slot in enumerate(slots)]

    def placed(n: int) -> Placement:
        names = list(others)
        for place in places(n, len(holders)):
            names[holders[place]] = chosen
        return tuple(names)

    counted = np.zeros(budget.allowed.shape)
    counted[:, budget.coding.number[chosen]] = 1.0
    most, least = (_count(budget, sign * counted, chosen) for sign in (1, -1))
    tried = [placed(n) for n in range(most, least - 1, -1)]
    return next((placement for placement in tried if budget.admits(placement)), None) or budget.nearest(tried[0])


def _count(budget: Budget, objective: np.ndarray, name: str) -> int:
    code = budget.solve(objective)
    assert code is not None, "check() passed"
    return int((code == budget.coding.number[name]).sum())
