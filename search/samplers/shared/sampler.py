"""The contract of samplers: the placements of a training step, drawn without any state."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from configs import ConfigError
from models.spec.placement import Placement, Slot


class Sampler(ABC):
    """Draws the placements that a supernet is trained on.

    A kind is one file `search/samplers/<kind>.py` with one class. Its constructor names what it needs of `slots` and `space`,
    which are handed down, then its options. A draw is for all slots at once and depends on nothing but the arguments, so that
    every rank draws the same and a resumed run goes on with the same; it is hashed, so that neighbouring seeds have nothing in
    common. Slots of a space may offer different names.

    Raises:
        ConfigError: from the constructor, for options that do not fit the slots.
    """

    n_per_step = 1
    """How many placements belong together; a step takes all of them."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)

    @abstractmethod
    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """The placement `index` of a step."""

    def shares(self) -> list[dict[str, float]] | None:
        """How often each slot has each of its names, for samplers of which that is known exactly; None for the others."""
        return None


def generator(*counters: int | str) -> np.random.Generator:
    """A generator of its own for every combination of counters and labels; counter-based, keyed by their hash."""
    key = hashlib.sha256(json.dumps(counters).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


def placements_of_step(sampler: Sampler, seed: int, step: int, n: int = 1) -> tuple[Placement, ...]:
    """What a step trains: `n` draws, each of as many placements as belong together for this sampler."""
    return tuple(sampler.draw(seed, step, index) for index in range(n * sampler.n_per_step))


def single(sampler: Sampler, option: str) -> Sampler:
    """The sampler itself; ConfigError if it draws several placements that belong together, which cannot stand for one."""
    if sampler.n_per_step != 1:
        raise ConfigError(f"{option}: a sampler that draws {sampler.n_per_step} placements a step cannot stand here")
    return sampler


def alike(slots: Sequence[Slot]) -> list[list[int]]:
    """The indices of the slots, in groups of those that offer the same names and are the same half of their block."""
    groups: dict[tuple[str, frozenset[str]], list[int]] = {}
    for index, slot in enumerate(slots):
        groups.setdefault((slot.sublayer, frozenset(slot.names)), []).append(index)
    return list(groups.values())
