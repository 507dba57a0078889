"""The contract of budget dimensions: a cost, what each piece of a rack adds to it, and how it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from models.assembly.cost import Count


@dataclass(frozen=True)
class Piece:
    """What is priced: one choice of a slot, or all that is outside of the slots.

    `count` has its modules, on torch's meta device, and what they add at the budget's context; `n_bytes` is the size of a number
    in a cache; `milliseconds` are those of the measured latency table, 0 without one.
    """

    count: Count
    n_bytes: int
    milliseconds: float


class Dimension(ABC):
    """A cost that budgets may limit. What a placement costs is the sum over its pieces.

    A dimension is one file `search/budget/dimensions/<name>.py` with one class; by that name budgets and results know it.
    """

    label: ClassVar[str]
    """The heading of its column in tables."""
    axis_label: ClassVar[str]
    """What it is called along the axis of a picture, with its unit."""
    column: ClassVar[int] = 100
    """Where its column stands among the others; the first has the lowest number."""
    number_format: ClassVar[str] = ",.0f"
    needs_latency_table: ClassVar[bool] = False
    """Whether there is no such cost where nothing was measured."""
    is_compared: ClassVar[bool] = True
    """Whether the table of a pipeline, which has little room, has its column."""

    @abstractmethod
    def price(self, piece: Piece) -> float:
        """What a piece adds."""

    def text(self, value: float) -> str:
        """A cost in a cell of a table."""
        return format(value, self.number_format)
