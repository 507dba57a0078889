"""The bookend placement: the main mixer in the first and last layers."""

from search.budget import Budget
from search.strategies.shared.handmade import handmade
from search.strategies.shared.strategy import Ask, Questions, Strategy


class Bookend(Strategy):
    """`name` (the dearest, if not given) in the first and the last layers, the odd one first; `rest` (the cheapest) between."""

    def __init__(self, *, name: str | None = None, rest: str | None = None) -> None:
        self._name, self._rest = name, rest

    def rounds(self, budget: Budget) -> Questions:
        """One round of one."""
        yield Ask([handmade(budget, self._name, self._rest, _places)])


def _places(n: int, total: int) -> list[int]:
    return [*range((n + 1) // 2), *range(total - n // 2, total)]
