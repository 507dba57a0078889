"""Rules over a whole rack that no single field can see; nothing is allocated to check them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from configs import Problems, Registry
from configs.registry import Part

if TYPE_CHECKING:
    from models.spec import BlockSpec

UNKNOWN_LENGTH = -1
"""Stands for the `max_length` of a backbone, which only the rack around it will know."""


class _EnoughError(Exception):
    """The constructor has come to computing values."""


class _AllocationsOnly(TorchFunctionMode):
    """Fills nothing, and ends a constructor where it first computes: for that torch imports its compiler, a second's wait."""

    allowed = frozenset(("empty", "zeros", "ones", "full", "__get__", "__set__", "dim", "size"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.__name__.endswith("_") and not func.__name__.startswith("_") and args:
            return args[0]
        if func.__name__ not in self.allowed:
            raise _EnoughError
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=4096)
def check_part(registry: Registry, part: Part | None, d_model: int, max_length: int | None) -> str | None:
    """Why the part cannot be built at these sizes, in its constructor's own words; None if it can.

    The constructor is the one place where a part's rules are written, so it is asked: on torch's meta device, where it
    takes about a millisecond and no memory, and as far as it only allocates. Rules come first in a constructor.
    """
    if part is None:
        return None
    for name, inner in part.options().get(registry.named_parts or "", {}).items():
        if message := check_part(registry, inner, d_model, max_length):
            return f"{registry.named_parts}.{name}: {message}"
    wanted = inspect.signature(registry[part.kind]).parameters.get("max_length")
    if max_length is None and wanted is not None and wanted.default is wanted.empty:
        return f"{part.kind} needs the rack's max_length"
    if max_length == UNKNOWN_LENGTH:
        max_length = 128
    try:
        with torch.device("meta"), _AllocationsOnly(), suppress(_EnoughError):
            registry.build(part, d_model=d_model, max_length=max_length, vocab_size=1, make_norm=torch.nn.Identity)
    except (ValueError, RuntimeError) as error:  # torch's own, for sizes whose product overflows
        return str(error)
    return None


def check_shares(problems: Problems, blocks: Sequence[tuple[BlockSpec, dict[str, Any]]]) -> None:
    """Blocks that share their weights must be the same block in stacks that say the same of them, and have no choice left."""
    first: dict[str, tuple[BlockSpec, dict[str, Any]]] = {}
    for index, (block, around) in enumerate(blocks):
        if block.share is not None and first.setdefault(block.share, (block, around)) != (block, around):
            text = f"block {index} shares '{block.share}' with an earlier block, but their settings differ"
            problems.add(("stacks",), text)
        if block.share is not None and any(part is not None and part.kind == "stochastic" for part in (block.mixer, block.mlp)):
            problems.add(("stacks",), f"block {index} shares '{block.share}', but has a choice: its places could not differ")
