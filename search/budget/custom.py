"""Costs that the user brings: a name, a unit, and a number for what may stand in each layer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, model_validator

from configs import ConfigError, Problems, Spec
from configs.errors import known_names
from models import RackSpec
from models.spec.placement import Slot
from search.budget.coding import slot_key

OTHERS = "*"
"""The layers that a table does not name; with `.mlp`, their channel mixers."""


class CustomCost(Spec):
    """One more dimension of budgets, from a table: `{name: energy, unit: mJ, layers: {"0": {attention: 3.1, window: 1.2}, ...}}`.

    Layers are called as in a budget's pins, `3` or `3.mlp`; `*` are those that are not named (`*.mlp`: their channel mixers,
    where those differ). A placement costs the sum over what it chooses: all else in the rack costs nothing.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    unit: Annotated[str, Field(min_length=1)]
    layers: Annotated[dict[str, dict[str, NonNegativeFloat]], Field(min_length=1)]

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """YAML reads a layer's number as a number."""
        del problems
        if isinstance(raw.get("layers"), dict):
            raw["layers"] = {str(layer).removesuffix(".mixer"): numbers for layer, numbers in raw["layers"].items()}
        return raw

    @model_validator(mode="after")
    def _check_layers(self) -> CustomCost:
        problems = Problems()
        for layer in self.layers:
            number = layer.removesuffix(".mlp")
            if number != OTHERS and not (number.isdecimal() and number == str(int(number))):
                problems.add(("layers", layer), "expected a layer such as 3, 3.mlp, * or *.mlp")
        problems.raise_if_any(type(self).__name__)
        return self

    def by_slot(self, space: RackSpec) -> list[dict[str, float]]:
        """Slot by slot the number of each name.

        Raises:
            ConfigError: for a choice that has none, a layer that is not there, or a name that is one of the space's choices.
        """
        n_layers, slots = sum(len(stack.expanded()) for stack in space.stacks), space.slots()
        for layer in self.layers:
            number = layer.removesuffix(".mlp")
            if number != OTHERS and int(number) >= n_layers:
                raise ConfigError(f"cost {self.name}: there is no layer {number}: the rack has layers 0 to {n_layers - 1}")
        for slot in slots:
            if self.name in slot.names:
                raise ConfigError(f"cost {self.name}: {slot} offers a choice of that name: call the cost otherwise")
        return [{name: self._number(slot, name) for name in slot.names} for slot in slots]

    def _number(self, slot: Slot, name: str) -> float:
        key, others = slot_key(slot), f"{OTHERS}.mlp" if slot.sublayer == "mlp" else OTHERS
        numbers = next((self.layers[each] for each in (key, others, OTHERS) if each in self.layers), {})
        if name not in numbers:
            raise ConfigError(f"cost {self.name}: no number for '{name}' in {slot}; {known_names(name, numbers)}")
        return numbers[name]
