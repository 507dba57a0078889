"""Balanced sampling: every choice of every layer once in each block of steps, in a random order."""

from collections.abc import Sequence

import numpy as np

from models.spec.placement import Placement, Slot
from search.samplers.shared.sampler import Sampler, generator


class Balanced(Sampler):
    """A block has as many steps as the slot has names, so that slots with fewer names are balanced over shorter blocks.

    Each of several draws of a step goes through blocks of its own.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        super().__init__(slots)
        self._sizes = np.array([len(slot.names) for slot in self.slots])

    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """A name for each slot."""
        numbers = np.empty(len(self.slots), dtype=int)
        for size in np.unique(self._sizes):
            block, position = divmod(step, int(size))
            random = generator("balanced", seed, block, index, int(size))
            orders = random.permuted(np.tile(np.arange(size), (len(self.slots), 1)), axis=1)
            numbers = np.where(self._sizes == size, orders[:, position], numbers)
        return tuple(slot.names[number] for slot, number in zip(self.slots, numbers, strict=True))

    def shares(self) -> list[dict[str, float]]:
        """Equal."""
        return [{name: 1 / len(slot.names) for name in slot.names} for slot in self.slots]
