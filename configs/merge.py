"""Merges one tree of plain values into another: mappings key by key, anything else replaced."""

from collections.abc import Mapping
from typing import Any


def merge(base: Any, override: Any) -> Any:
    """`base` with the keys of `override` on top, mapping by mapping; anything else, and another `kind`, replaces."""
    if not isinstance(base, Mapping) or not isinstance(override, Mapping):
        return override
    if "kind" in override and override["kind"] != base.get("kind"):
        return dict(override)
    return {**base, **{key: merge(base.get(key), value) for key, value in override.items()}}
