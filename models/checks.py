"""Rules over a whole rack that no single field can see; nothing is allocated to check them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from configs import Problems, Registry
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
    if "max_length" in inspect.signature(registry[part.kind]).parameters:
        if max_length is None:
            return f"{part.kind} needs the rack's max_length"
        if max_length == UNKNOWN_LENGTH:
            max_length = 128
    try:
        with torch.device("meta"):
            registry.build(part, d_model=d_model, max_length=max_length, vocab_size=1, make_norm=torch.nn.Identity)
    except (ValueError, RuntimeError) as error:  # torch's own, for sizes whose product overflows
        return str(error)
    return None


def check_shares(problems: Problems, blocks: Sequence[BlockSpec]) -> None:
    """Blocks that share their weights must be the same block."""
    first: dict[str, BlockSpec] = {}
    for index, block in enumerate(blocks):
        if block.share is not None and first.setdefault(block.share, block) != block:
            text = f"block {index} shares '{block.share}' with an earlier block, but their settings differ"
            problems.add(("stacks",), text)
