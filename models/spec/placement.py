"""Placements: one name per searchable slot, and the short texts that stand for them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from configs import ConfigError
from configs.errors import known_names

Placement = tuple[str, ...]
Sublayer = Literal["mixer", "mlp"]


@dataclass(frozen=True)
class Slot:
    """A place in a space that still has a choice: half a block, what it may hold in declared order, and the main choice.

    `layer` is the absolute index of the block in the rack. Slots are ordered as the data flows.
    """

    layer: int
    sublayer: Sublayer
    names: tuple[str, ...]
    main: str

    def __str__(self) -> str:
        return f"layer {self.layer}" if self.sublayer == "mixer" else f"channel mixer of layer {self.layer}"


def parse_placement(value: str | Sequence[str], slots: Sequence[Slot]) -> Placement:
    """The placement that a text or a list of names stands for, checked against the slots.

    Texts: `attention, gdn*3` names slot after slot; `all:gdn`; `every:4:attention:gdn` puts attention into the last slot of each
    four and gdn into the others; `bookend:attention:gdn` puts attention into the first and the last. The last three count the
    slots that offer one of their names, and leave the others at their main choice.

    Raises:
        ConfigError: for a wrong number of names, a name that a slot does not offer, or a form that is none of these.
    """
    if not isinstance(value, str):
        return check_placement(tuple(value), slots)
    match [word.strip() for word in value.split(":")]:
        case [listed]:
            return check_placement(tuple(_listed(listed)), slots)
        case ["all", rest]:
            return _fill(value, slots, (rest,), lambda n: [rest] * n)
        case ["every", period, name, rest] if period.isdecimal() and int(period) > 0:
            cycle = [rest] * (int(period) - 1) + [name]
            return _fill(value, slots, (name, rest), lambda n: [cycle[index % len(cycle)] for index in range(n)])
        case ["bookend", name, rest]:
            return _fill(value, slots, (name, rest), lambda n: [name, *[rest] * (n - 2), name][:n])
    raise ConfigError(
        f"placement '{value}': expected names as in 'attention, gdn*3', or all:NAME, every:N:NAME:REST, bookend:NAME:REST"
    )


def check_placement(placement: Placement, slots: Sequence[Slot]) -> Placement:
    """The placement itself; ConfigError if it does not fit the slots."""
    if len(placement) != len(slots):
        raise ConfigError(f"placement '{placement_text(placement)}': {len(placement)} names for {len(slots)} searchable slots")
    for name, slot in zip(placement, slots, strict=True):
        if name not in slot.names:
            raise ConfigError(f"placement: {slot} has no '{name}'; {known_names(name, slot.names)}")
    return placement


def placement_text(placement: Placement) -> str:
    """The short text of a placement: `attention, gdn*3`."""
    runs = ((name, len(list(group))) for name, group in groupby(placement))
    return ", ".join(name if count == 1 else f"{name}*{count}" for name, count in runs)


def main_placement(slots: Sequence[Slot]) -> Placement:
    """The main choice of every slot."""
    return tuple(slot.main for slot in slots)


def _listed(text: str) -> Iterator[str]:
    for item in text.split(",") if text.strip() else ():
        match = re.fullmatch(r"\s*([^*\s]+)\s*(?:\*\s*(\d+))?\s*", item)
        if match is None:
            raise ConfigError(f"placement '{text}': '{item.strip()}' is neither a name nor name*count")
        yield from [match[1]] * int(match[2] or 1)


def _fill(text: str, slots: Sequence[Slot], wanted: Sequence[str], pattern: Callable[[int], list[str]]) -> Placement:
    """The names that `pattern` has for the slots with any of the `wanted` ones, and the main choice of the others."""
    offered = {word for slot in slots for word in slot.names}
    for word in wanted:
        if word not in offered:
            raise ConfigError(f"placement '{text}': no slot has '{word}'; {known_names(word, offered)}")
    placement = list(main_placement(slots))
    places = [index for index, slot in enumerate(slots) if set(wanted) & set(slot.names)]
    for index, name in zip(places, pattern(len(places)), strict=True):
        placement[index] = name
    return check_placement(tuple(placement), slots)
