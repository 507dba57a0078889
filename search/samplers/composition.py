"""Sampling by composition: counts of each mixer drawn uniformly, then their order (all-attention as likely as any mix)."""

from collections.abc import Sequence

import numpy as np

from models.spec.placement import Placement, Slot
from search.samplers.shared.sampler import Sampler, alike, generator


class Composition(Sampler):
    """All-attention is as likely as any mix: in 48 layers of 4 mixers each of the 20,825 compositions has the same probability.

    Slots that offer different names are shared out by themselves, each group of those that offer the same.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        super().__init__(slots)
        self._groups = alike(self.slots)

    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """A composition of each group, in a random order."""
        random = generator("composition", seed, step, index)
        placement = [""] * len(self.slots)
        for group in self._groups:
            names = self.slots[group[0]].names
            # Stars and bars: every choice of the bars among the places is one composition.
            n_places = len(group) + len(names) - 1
            bars = np.sort(random.choice(n_places, len(names) - 1, replace=False))
            counts = np.diff([-1, *bars, n_places]) - 1
            drawn = random.permutation(np.repeat(np.arange(len(names)), counts))
            for slot, number in zip(group, drawn, strict=True):
                placement[slot] = names[number]
        return tuple(placement)

    def shares(self) -> list[dict[str, float]]:
        """Equal, since no name and no slot is preferred."""
        return [{name: 1 / len(slot.names) for name in slot.names} for slot in self.slots]
