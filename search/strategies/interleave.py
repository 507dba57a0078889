"""The interleaved placement: the main mixer at equal distances, last in each period."""

from search.budget import Budget
from search.strategies.shared.handmade import handmade
from search.strategies.shared.strategy import Ask, Questions, Strategy


class Interleave(Strategy):
    """`name` (the dearest, if not given) among `rest` (the cheapest), as often as the budget admits."""

    def __init__(self, *, name: str | None = None, rest: str | None = None) -> None:
        self._name, self._rest = name, rest

    def rounds(self, budget: Budget) -> Questions:
        """One round of one."""
        yield Ask([handmade(budget, self._name, self._rest, _places)])


def _places(n: int, total: int) -> list[int]:
    return [(index + 1) * total // n - 1 for index in range(n)]
