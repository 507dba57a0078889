"""Rules over a whole rack that no single field can see; nothing is allocated to check them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Sequence
from fnmatch import filter as matching_names
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from configs import Problems, Registry
from configs.errors import nearest_name
from configs.registry import Part

if TYPE_CHECKING:
    from models.spec import BlockSpec

UNKNOWN_LENGTH = -1
"""Stands for the `max_length` of a backbone, which only the rack around it will know."""


@lru_cache(maxsize=4096)
def check_part(registry: Registry, part: Part | None, d_model: int, max_length: int | None) -> str | None:
    """Why the part cannot be built at these sizes, in its constructor's own words; None if it can.

    The constructor is the one place where a part's rules are written, so it is asked: on torch's meta device, where it
    takes about a millisecond and no memory.
    """
    if part is None:
        return None
    for name, inner in part.options().get(registry.named_parts or "", {}).items():
        if message := check_part(registry, inner, d_model, max_length):
            return f"{registry.named_parts}.{name}: {message}"
    if max_length is None and "max_length" in inspect.signature(registry[part.kind]).parameters:
        return f"{part.kind} needs the rack's max_length"
    if max_length == UNKNOWN_LENGTH:
        max_length = 128
    try:
        with torch.device("meta"):
            registry.build(part, d_model=d_model, max_length=max_length, vocab_size=1, make_norm=torch.nn.Identity)
    except (ValueError, RuntimeError) as error:  # torch's own, for sizes whose product overflows
        return str(error)
    return None


def check_shares(problems: Problems, blocks: Sequence[tuple[BlockSpec, float]]) -> None:
    """Blocks that share their weights must be the same block in stacks of one `lr_scale`, and have no choice left."""
    first: dict[str, tuple[BlockSpec, float]] = {}
    for index, (block, lr_scale) in enumerate(blocks):
        if block.share is not None and first.setdefault(block.share, (block, lr_scale)) != (block, lr_scale):
            text = f"block {index} shares '{block.share}' with an earlier block, but their settings differ"
            problems.add(("stacks",), text)
        if block.share is not None and any(part is not None and part.kind == "stochastic" for part in (block.mixer, block.mlp)):
            problems.add(("stacks",), f"block {index} shares '{block.share}', but has a choice: its places could not differ")


def check_globs(problems: Problems, globs: Iterable[str], names: Collection[str]) -> None:
    """Every glob of `parameters` must match the name of a parameter."""
    for glob in globs:
        if not matching_names(names, glob):
            text = f"'{glob}' matches no parameter; the nearest is '{nearest_name(glob, names) or next(iter(names))}'"
            problems.add(("parameters", glob), text)
