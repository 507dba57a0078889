"""Weighted sampling: choices with given probabilities, for all layers or layer by layer."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, NonNegativeFloat

from configs import ConfigError
from configs.errors import known_names
from models.spec.placement import Placement, Slot
from search.budget.coding import check_name, find_slot
from search.samplers.shared.sampler import Sampler, generator

Weights = dict[str, NonNegativeFloat]
# YAML reads a layer's number as a number; a saved spec has text.
ByKey = Annotated[
    dict[str, NonNegativeFloat | Weights],
    BeforeValidator(lambda value: {str(key): inner for key, inner in value.items()} if isinstance(value, dict) else value),
]


class Weighted(Sampler):
    """`weights` has names with their weights, and layers (`3`, `3.mlp`) with weights of their own; no name may be missing."""

    def __init__(self, slots: Sequence[Slot], *, weights: ByKey) -> None:
        super().__init__(slots)
        everywhere = {name: weight for name, weight in weights.items() if not isinstance(weight, dict)}
        offered = {name for slot in slots for name in slot.names}
        for name in everywhere:
            if name not in offered:
                raise ConfigError(f"weights: no layer has '{name}'; {known_names(name, offered)}")
        own = {find_slot(key, slots, "weights"): value for key, value in weights.items() if isinstance(value, dict)}
        for index, given in own.items():
            for name in given:
                check_name(name, slots[index], "weights")
        self._shares = [_normalised(slot, own.get(index, everywhere)) for index, slot in enumerate(self.slots)]
        self._bounds = [np.cumsum(list(shares.values())) for shares in self._shares]

    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """A name for each slot."""
        numbers = generator("weighted", seed, step, index).random(len(self.slots))
        places = [
            int(np.searchsorted(bounds[:-1], number, side="right")) for bounds, number in zip(self._bounds, numbers, strict=True)
        ]
        return tuple(slot.names[place] for slot, place in zip(self.slots, places, strict=True))

    def shares(self) -> list[dict[str, float]]:
        """The weights, normalised."""
        return self._shares


def _normalised(slot: Slot, weights: Weights) -> dict[str, float]:
    missing = [name for name in slot.names if name not in weights]
    if missing:
        raise ConfigError(f"weights: {slot} has no weight for {', '.join(missing)}; 0 leaves a name out")
    total = sum(weights[name] for name in slot.names)
    if total == 0:
        raise ConfigError(f"weights: all names of {slot} have weight 0")
    return {name: weights[name] / total for name in slot.names}
