"""Listed placements with given probabilities; the rest of the steps go to another sampler."""

import json
from collections.abc import Sequence

import numpy as np
from pydantic import PositiveFloat

from configs import ConfigError
from models import RackSpec
from models.spec.placement import Placement, Slot, parse_placement
from search.samplers import SAMPLERS, Nested
from search.samplers.shared.sampler import Sampler, generator, single


class Fixed(Sampler):
    """`placements` maps texts (`all:gdn`, `every:4:attention:gdn`, `attention, gdn*5`) to probabilities.

    They add up to 1, or `remainder` is drawn from with the rest.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        space: RackSpec,
        *,
        placements: dict[str, PositiveFloat],
        remainder: Nested = None,
    ) -> None:
        super().__init__(slots)
        if not placements:
            raise ConfigError("placements: none is listed")
        self._placements = [parse_placement(text, self.slots) for text in placements]
        self._bounds = np.cumsum(list(placements.values()))
        left = 1 - float(self._bounds[-1])
        if left < -1e-9:
            raise ConfigError(f"placements: the probabilities add up to {self._bounds[-1]:g}, more than 1")
        if remainder is None and left > 1e-9:
            raise ConfigError(
                f"placements: the probabilities add up to {self._bounds[-1]:g}; give a remainder, a sampler for the rest"
            )
        if remainder is not None and left <= 1e-9:
            raise ConfigError("remainder: nothing is left for it, the probabilities of the placements add up to 1")
        # Part of the key of its draws: one inside of another decides for itself.
        self._content = json.dumps([placements, None if remainder is None else remainder.to_dict()], sort_keys=True)
        self._remainder = None if remainder is None else single(SAMPLERS.build(remainder, slots=slots, space=space), "remainder")

    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """One of the placements, or one that the remainder draws."""
        number = generator("fixed", seed, step, index, self._content).random()
        bounds = self._bounds if self._remainder else self._bounds[:-1]
        chosen = int(np.searchsorted(bounds, number, side="right"))
        if chosen < len(self._placements):
            return self._placements[chosen]
        assert self._remainder is not None
        return self._remainder.draw(seed, step, index)

    def shares(self) -> list[dict[str, float]] | None:
        """Those of the placements, and of the remainder if it knows its own."""
        chances = np.diff(self._bounds, prepend=0.0)
        parts = [
            (float(chance), [{name: 1.0} for name in placement])
            for chance, placement in zip(chances, self._placements, strict=True)
        ]
        if self._remainder is not None:
            rest = self._remainder.shares()
            if rest is None:
                return None
            parts.append((1 - float(self._bounds[-1]), rest))
        return [
            {name: sum(chance * shares[index].get(name, 0.0) for chance, shares in parts) for name in slot.names}
            for index, slot in enumerate(self.slots)
        ]
