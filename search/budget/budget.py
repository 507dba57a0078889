"""Budgets: what a placement may spend, by layers of a mixer and by costs, with pinned and forbidden choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, StrictInt

from configs import ConfigError
from configs.errors import known_names
from models import RackSpec
from models.spec.placement import Placement, main_placement
from search.budget.coding import Coding, slot_key
from search.budget.costs import CostTable, Latencies
from search.budget.custom import CustomCost
from search.budget.dimensions import dimensions
from search.budget.feasibility import impossible
from search.budget.limits import Limit, parse_cost, parse_count
from search.budget.pins import SETTINGS, check_memory, forbidden, main_name, pins
from search.budget.program import ConstraintRow, solve


def _with_text_keys(value: Any) -> Any:
    """YAML reads a layer's number as a number; a saved spec has text."""
    return {str(key): _with_text_keys(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


BudgetValue = Annotated[StrictInt | dict[str, Any], BeforeValidator(_with_text_keys)]
"""The annotation of a field or option that holds what `Budget.of` takes."""


class Budget:
    """All that a placement of a space has to keep to; made by `Budget.of`.

    `limits` are the layers of mixers and the costs; `allowed` [n_slots, n_names] is what pins and forbidden choices leave of the
    names that the slots offer, by the numbers of `coding`. `costs` is the table at the budget's context and dtype.
    """

    def __init__(
        self, space: RackSpec, settings: Mapping[str, Any], latency: Latencies | None, custom: Sequence[CustomCost]
    ) -> None:
        self.space, self.coding = space, Coding(space.slots())
        self._settings, self._latency, self._custom = settings, latency, custom
        slots = self.coding.slots
        if not slots:
            raise ConfigError("budget: the rack has no searchable layer (no part of kind stochastic)")
        known = (*self.coding.names, *dimensions(), *(each.name for each in custom), *SETTINGS)
        for key in settings:
            if key not in known:
                raise ConfigError(f"budget: unknown key '{key}'; {known_names(str(key), known)}")
        check_memory(settings)
        self.pins, self.forbidden = pins(settings, slots), forbidden(settings, slots)
        self.allowed = self._allowed()
        self.limits = tuple(self._limit(key, value) for key, value in settings.items() if key not in SETTINGS)

    @classmethod
    def of(
        cls,
        value: int | Mapping[str, Any] | Budget,
        space: RackSpec,
        context: int | None = None,
        latency: Latencies | None = None,
        custom: Sequence[CustomCost] = (),
    ) -> Budget:
        """The budget that a value describes, checked.

        A number is so many layers of the main mixer. A mapping has any of

        - a name: `2` layers exactly, `"<=2"`, `">=2"`, `"1..3"`, counted over all slots that offer it;
        - a cost of `search/budget/dimensions/`, such as `kv_bytes`: a number is the most, `"60%"` that share of the all-main
          rack, `"1e6..2e6"` a range; the name of a `custom` cost likewise;
        - `pin: {0: attention}` and `forbid: {3: [linear]}`, by the layer in the rack, `3.mlp` for its channel mixer;
        - `context` and `dtype`, of what is kept in memory.

        Args:
            value: a number, a mapping, or a budget, which is returned as it is.
            space: the rack whose choices are to be made.
            context: positions, where the mapping has none; the space's longest sequence, or 1024, if not given either.
            latency: the measured table, for limits on what it measures.
            custom: the costs that the user brings.

        Raises:
            ConfigError: for what does not fit the space, and for limits that no placement keeps, with the nearest that can be.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, bool) or not isinstance(value, Integral | Mapping):
            raise ConfigError(f"budget: {value!r}: expected a number of layers, or a mapping of limits")
        settings = dict(value) if isinstance(value, Mapping) else {main_name(space.slots()): int(value)}
        if context is not None:
            settings.setdefault("context", context)
        budget = cls(space, settings, latency, custom)
        budget.check()
        return budget

    @cached_property
    def costs(self) -> CostTable:
        """What the choices cost at the budget's context and dtype."""
        context, dtype = self._settings.get("context"), self._settings.get("dtype", "bf16")
        return CostTable.of(self.space, context, dtype, self._latency, self._custom)

    @cached_property
    def rows(self) -> tuple[ConstraintRow, ...]:
        """The limits on what the choices add."""
        return tuple(limit.row for limit in self.limits)

    def admits(self, placement: Placement) -> bool:
        """Whether a placement is within the budget; ConfigError if it is none of the space."""
        return bool(self.admits_all(self.coding.encode([placement]))[0])

    def admits_all(self, codes: np.ndarray) -> np.ndarray:
        """Whether each of the codes [n, n_slots] is: [n]."""
        admitted = self.allowed[np.arange(codes.shape[1]), codes].all(1)
        for row in self.rows:
            admitted &= row.admits(codes)
        return admitted

    def solve(
        self, objective: np.ndarray | None = None, *, allowed: np.ndarray | None = None, also: Sequence[ConstraintRow] = ()
    ) -> np.ndarray | None:
        """The code [n_slots] within the budget with the greatest sum of `objective` [n_slots, n_names], or None.

        Without an objective, any. `allowed` takes the place of what the budget allows; `also` are further limits.
        """
        chosen = self.allowed if allowed is None else allowed
        return solve(np.zeros(chosen.shape) if objective is None else objective, chosen, [*self.rows, *also])

    def nearest(self, placement: Placement) -> Placement:
        """The placement within the budget that has the most names in common with this one."""
        code = self.solve(np.eye(len(self.coding.names))[self.coding.encode([placement])[0]])
        assert code is not None, "check() passed"
        return self.coding.decode(code[None])[0]

    def check(self) -> None:
        """ConfigError if no placement is within the budget: the limit that cannot be met, and the nearest that can."""
        if message := impossible(self.limits, self.allowed):
            pinned = ", ".join(f"{slot_key(self.coding.slots[index])}: {name}" for index, name in self.pins.items())
            raise ConfigError(f"budget: {message}" + (f" (pinned: {pinned})" if pinned else ""))

    def text(self) -> str:
        """All of it on one line: `attention = 4, kv_bytes <= 1,048,576, pin 0: attention`."""
        key = [slot_key(slot) for slot in self.coding.slots]
        pins = [f"pin {key[index]}: {name}" for index, name in self.pins.items()]
        forbidden = [f"forbid {key[index]}: {' '.join(names)}" for index, names in self.forbidden.items()]
        return ", ".join([*(limit.text() for limit in self.limits), *pins, *forbidden]) or "no limit"

    def _allowed(self) -> np.ndarray:
        allowed = self.coding.offered.copy()
        for index, names in self.forbidden.items():
            allowed[index, [self.coding.number[name] for name in names]] = False
        for index, name in self.pins.items():
            if not allowed[index, self.coding.number[name]]:
                raise ConfigError(
                    f"budget: pin and forbid: {self.coding.slots[index]} is pinned to '{name}', which is forbidden there"
                )
            allowed[index] = np.arange(len(self.coding.names)) == self.coding.number[name]
        for index, slot in enumerate(self.coding.slots):
            if not allowed[index].any():
                raise ConfigError(f"budget: forbid: nothing is left for {slot}: it offers {', '.join(slot.names)}")
        return allowed

    def _limit(self, key: str, value: object) -> Limit:
        offered = self.coding.offered
        if key not in dimensions() and all(key != each.name for each in self._custom):
            low, high = parse_count(key, value)
            return Limit(key, low, high, offered * (np.arange(offered.shape[1]) == self.coding.number[key]))
        if key not in self.costs.base:
            raise ConfigError(f"budget: {key}: needs a table that `python -m search profile` measured")
        most = self.costs.of_placement(main_placement(self.coding.slots))[key]
        bounds = parse_cost(key, value, most)
        weights = np.zeros(offered.shape)
        for index, choice in enumerate(self.costs.choices):
            for name, spent in choice.items():
                weights[index, self.coding.number[name]] = spent[key]
        return Limit(key, *bounds, weights, self.costs.base[key], is_cost=True, unit=self.costs.units.get(key, ""))
