"""What placements cost: a table by slot and name, summed, and what a sampler makes a supernet cost on average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from configs import ConfigError
from configs.errors import known_names
from models import RackSpec
from models.spec.placement import Placement, Slot
from search.budget.custom import CustomCost
from search.budget.dimensions import dimensions
from search.budget.dimensions.shared.dimension import Piece

if TYPE_CHECKING:
    from models.assembly.cost import Count, SpaceCost

DEAR_FIRST = (("kv_bytes", "state_bytes"), ("flops",), ("params",))
"""Dear is what keeps more of a sequence in memory, then what computes more, then what has more parameters."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
DEFAULT_CONTEXT = 1024

Costs = dict[str, float]


class Latencies(Protocol):
    """A measured latency table: the milliseconds of every choice of a space, and of what is outside of the choices."""

    def of_space(self, space: RackSpec, context: int) -> tuple[float, list[dict[str, float]]]:
        """Base, and slot by slot the milliseconds by name; ConfigError for a part that was not measured."""


@dataclass(frozen=True)
class CostTable:
    """The costs of a space at a context length (positions) and dtype, by dimension; latency only where it was measured.

    A placement costs the `base`, which is everything outside of the slots, and one of the `choices` of each slot. `units` are
    those of the costs that the user brings.
    """

    slots: tuple[Slot, ...]
    context: int
    dtype: str
    base: Costs
    choices: tuple[dict[str, Costs], ...]
    units: Mapping[str, str]

    @classmethod
    def of(
        cls,
        space: RackSpec,
        context: int | None = None,
        dtype: str = "bf16",
        latency: Latencies | None = None,
        custom: Sequence[CustomCost] = (),
    ) -> Self:
        """Count a space; without a context, at the longest sequence that the space is made for, or 1024.

        Raises:
            ConfigError: for an unknown dtype, and for a custom cost that does not fit the space.
        """
        size = n_bytes(dtype)
        context = context or space.max_length or DEFAULT_CONTEXT
        counted = _counted(space, context)
        unmeasured = (0.0, [dict.fromkeys(choice, 0.0) for choice in counted.choices])
        outside, by_slot = unmeasured if latency is None else latency.of_space(space, context)
        priced = {key: each for key, each in dimensions().items() if latency is not None or not each.needs_latency_table}

        def costs(count: Count, milliseconds: float) -> Costs:
            piece = Piece(count, size, milliseconds)
            return {key: dimension.price(piece) for key, dimension in priced.items()}

        brought = {each.name: each.by_slot(space) for each in custom}
        choices = tuple(
            {
                name: {**costs(count, by_slot[index][name]), **{key: table[index][name] for key, table in brought.items()}}
                for name, count in choice.items()
            }
            for index, choice in enumerate(counted.choices)
        )
        base = {**costs(counted.base, outside), **dict.fromkeys(brought, 0.0)}
        return cls(space.slots(), context, dtype, base, choices, {each.name: each.unit for each in custom})

    def of_placement(self, placement: Placement) -> Costs:
        """What a placement costs in all."""
        chosen = [choice[name] for choice, name in zip(self.choices, placement, strict=True)]
        return {key: value + sum(costs[key] for costs in chosen) for key, value in self.base.items()}

    def of_shares(self, shares: Iterable[Mapping[str, float]]) -> Costs:
        """What a mixture costs that has, slot by slot, each name with its share."""
        parts = [(share, choice[name]) for choice, each in zip(self.choices, shares, strict=True) for name, share in each.items()]
        return {key: value + sum(share * costs[key] for share, costs in parts) for key, value in self.base.items()}

    def by_cost(self, names: Iterable[str] | None = None) -> tuple[str, ...]:
        """Names (all, if not given) by what is dear: see `DEAR_FIRST`; means over slots."""
        offered = dict.fromkeys(name for slot in self.slots for name in slot.names)
        found = {name: [choice[name] for choice in self.choices if name in choice] for name in offered}
        price = {name: _price(found[name]) for name in (offered if names is None else names)}
        return tuple(sorted(price, key=lambda name: price[name], reverse=True))

    def dearest_by(self, key: str) -> str:
        """The name that costs most in one dimension; means over slots."""
        found: dict[str, list[float]] = {}
        for choice in self.choices:
            for name, costs in choice.items():
                found.setdefault(name, []).append(costs[key])
        return max(found, key=lambda name: float(np.mean(found[name])))

    def dear_to_cheap_in(self, index: int) -> tuple[str, ...]:
        """The names of one slot, by its own costs."""
        choice = self.choices[index]
        return tuple(sorted(choice, key=lambda name: _price([choice[name]]), reverse=True))


@lru_cache(maxsize=8)
def _counted(space: RackSpec, context: int) -> SpaceCost:
    """Every budget of a search asks for the same; a space of 48 layers takes seconds to count."""
    from models.assembly.cost import space_cost

    return space_cost(space, context)


def _price(found: Sequence[Costs]) -> tuple[float, ...]:
    return tuple(float(np.mean([sum(costs[key] for key in keys) for costs in found])) for keys in DEAR_FIRST)


def n_bytes(dtype: str) -> int:
    """Bytes a number; ConfigError for an unknown dtype."""
    if str(dtype) not in BYTES:
        raise ConfigError(f"dtype: unknown '{dtype}'; {known_names(str(dtype), BYTES)}")
    return BYTES[dtype]
