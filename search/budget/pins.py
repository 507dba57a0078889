"""Keys of a budget besides limits: pinned and forbidden choices, and the context that costs are counted at."""

from collections.abc import Mapping, Sequence
from typing import Any

from configs import ConfigError
from models.spec.placement import Slot
from search.budget.coding import check_name, find_slot
from search.budget.costs import n_bytes

SETTINGS = ("pin", "forbid", "context", "dtype")
PinSettings = Mapping[str, Any]


def main_name(slots: Sequence[Slot]) -> str:
    """The main mixer of all layers; ConfigError if there are several."""
    mains = dict.fromkeys(slot.main for slot in slots if slot.sublayer == "mixer") or dict.fromkeys(slot.main for slot in slots)
    if len(mains) > 1:
        raise ConfigError(f"budget: a number means layers of the main mixer, but there are several: {', '.join(mains)}; name one")
    return next(iter(mains), "")


def pins(settings: PinSettings, slots: Sequence[Slot]) -> dict[int, str]:
    """`pin: {0: attention}`: names by the index of their slot."""
    pinned: dict[int, str] = {}
    for key, name in _mapping(settings, "pin", "{0: attention}").items():
        index = find_slot(key, slots, "budget: pin")
        if pinned.setdefault(index, check_name(name, slots[index], "budget: pin")) != name:
            raise ConfigError(f"budget: pin: {slots[index]} is pinned to '{pinned[index]}' and to '{name}'")
    return pinned


def forbidden(settings: PinSettings, slots: Sequence[Slot]) -> dict[int, list[str]]:
    """`forbid: {3: [linear]}`: what each slot may not hold, by the index of the slot."""
    found: dict[int, list[str]] = {}
    for key, names in _mapping(settings, "forbid", "{3: [linear]}").items():
        index = find_slot(key, slots, "budget: forbid")
        if not isinstance(names, str | list | tuple):
            raise ConfigError(f"budget: forbid: {key}: {names!r}: expected names")
        listed = [names] if isinstance(names, str) else names
        found.setdefault(index, []).extend(check_name(name, slots[index], "budget: forbid") for name in listed)
    return found


def check_memory(settings: PinSettings) -> None:
    """ConfigError for a context or dtype that is none."""
    context = settings.get("context", 1)
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise ConfigError(f"budget: context: {context!r}: expected a number of positions, at least 1")
    n_bytes(settings.get("dtype", "bf16"))


def _mapping(settings: PinSettings, key: str, example: str) -> Mapping[Any, Any]:
    value = settings.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"budget: {key}: {value!r}: expected a mapping such as {example}")
    return value
