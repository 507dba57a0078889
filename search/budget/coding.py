"""Placements as integer arrays [placements, slots], so that many are handled at once."""

from collections.abc import Iterable, Sequence

import numpy as np

from configs import ConfigError
from configs.errors import known_names
from models.spec.placement import Placement, Slot, check_placement


class Coding:
    """The names that some slots offer, numbered in the order in which they are first offered.

    A code [n_slots] is a placement; `offered` [n_slots, n_names] says which names a slot has.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)
        self.names = tuple(dict.fromkeys(name for slot in slots for name in slot.names))
        self.number = {name: number for number, name in enumerate(self.names)}
        offered = [[name in slot.names for name in self.names] for slot in slots]
        self.offered = np.array(offered, dtype=bool).reshape(len(self.slots), len(self.names))
        self._spelt = np.array(self.names, dtype=object)

    def encode(self, placements: Iterable[Placement]) -> np.ndarray:
        """Placements -> codes [n, n_slots]; ConfigError for one of another length, or with a name that no slot offers."""
        number, listed = self.number, list(placements)
        try:
            rows = [[number[name] for name in placement] for placement in listed]
            return np.array(rows, dtype=np.int16).reshape(len(rows), len(self.slots))
        except (KeyError, ValueError):  # to check each beforehand would take longer than all the rest
            for placement in listed:
                check_placement(placement, self.slots)
            raise

    def decode(self, codes: np.ndarray) -> list[Placement]:
        """Codes [n, n_slots] -> placements."""
        return [tuple(row) for row in self._spelt[codes].tolist()]


def slot_key(slot: Slot) -> str:
    """How a slot is named in budgets and weights: its layer, and `.mlp` where it is the channel mixer."""
    return str(slot.layer) if slot.sublayer == "mixer" else f"{slot.layer}.mlp"


def find_slot(key: object, slots: Sequence[Slot], where: str) -> int:
    """The index of the slot that `3`, `"3"` or `"3.mlp"` names; ConfigError, beginning with `where`, if there is none."""
    keys = [slot_key(slot) for slot in slots]
    wanted = str(key).removesuffix(".mixer")
    if wanted not in keys:
        raise ConfigError(f"{where}: there is no searchable layer '{key}'; known: {', '.join(keys)}")
    return keys.index(wanted)


def check_name(name: object, slot: Slot, where: str) -> str:
    """The name itself; ConfigError, beginning with `where`, if the slot does not offer it."""
    if name not in slot.names:
        raise ConfigError(f"{where}: {slot} has no '{name}'; {known_names(str(name), slot.names)}")
    return str(name)
