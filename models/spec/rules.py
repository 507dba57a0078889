"""Rules over a whole rack that no single field can see; nothing is allocated to check them."""

import inspect
from collections.abc import Sequence
from functools import lru_cache

from configs import Problems, Registry
from configs.errors import Location
from configs.registry import Part
from models.spec.block import BlockSpec

UNKNOWN_LENGTH = -1
"""Stands for the `max_length` of a backbone, which only the rack around it will know."""


def check_part(registry: Registry, part: Part | None, d_model: int, max_length: int | None, vocab_size: int = 1) -> str | None:
    """Why the part cannot be built at these sizes, in its constructor's own words; None if it can.

    The constructor is the one place where a part's rules are written, so it is asked: on torch's meta device, where it
    takes about a millisecond and no memory.
    """
    return None if part is None else _asked(registry, part, d_model, max_length, vocab_size)[0]


def n_parameters(registry: Registry, part: Part | None, d_model: int, max_length: int | None, vocab_size: int = 1) -> int:
    """How many parameters a part has that can be built, those of all its choices too; nothing is allocated to know it."""
    return 0 if part is None else _asked(registry, part, d_model, max_length, vocab_size)[1]


def choices(registry: Registry, part: Part) -> dict[str, Part | None]:
    """The parts in a part by name, if it holds any."""
    found: dict[str, Part | None] = part.options().get(registry.named_parts or "", {})
    return found


@lru_cache(maxsize=4096)
def _asked(registry: Registry, part: Part, d_model: int, max_length: int | None, vocab_size: int) -> tuple[str | None, int]:
    inside = 0
    for name, inner in choices(registry, part).items():
        message, n_inner = (None, 0) if inner is None else _asked(registry, inner, d_model, max_length, vocab_size)
        if message:
            return f"{registry.named_parts}.{name}: {message}", 0
        inside += n_inner
    wanted = inspect.signature(registry[part.kind]).parameters.get("max_length")
    if max_length is None and wanted is not None and wanted.default is wanted.empty:
        return f"{part.kind} needs the rack's max_length", 0
    from models.spec.meta_device import refusal

    length = 128 if max_length == UNKNOWN_LENGTH else max_length
    message, own = refusal(registry, part, d_model=d_model, max_length=length, vocab_size=vocab_size)
    return message, own + inside


def check_uids(problems: Problems, uids: Sequence[int], next_uid: int | None) -> None:
    """No two stacks have the same one, and the next is that of none."""
    for index, uid in enumerate(uids):
        if uid in uids[:index]:
            text = f"stacks[{uids.index(uid)}] has the uid {uid} already (a stack that has none goes by its position)"
            problems.add(("stacks", index, "uid"), text)
    if next_uid is not None and next_uid <= max(uids):
        problems.add(("next_uid",), f"{next_uid} must be above the uids that are there, up to {max(uids)}")


def check_shares(problems: Problems, blocks: Sequence[tuple[Location, BlockSpec, str]]) -> None:
    """Blocks that share their weights must be the same block in stacks that say the same of them, and have no choice left.

    `blocks` are, in order, where each is written, the block, and what its stack says of what is below.
    """
    from models.rack.choice import STOCHASTIC

    first: dict[str, tuple[BlockSpec, str]] = {}
    for index, (location, block, around) in enumerate(blocks):
        if block.share is not None and first.setdefault(block.share, (block, around)) != (block, around):
            text = f"block {index} shares '{block.share}' with an earlier block, but their settings differ"
            problems.add((*location, "share"), text)
        if block.share is not None and any(part is not None and part.kind == STOCHASTIC for part in (block.mixer, block.mlp)):
            problems.add(
                (*location, "share"), f"block {index} shares '{block.share}', but has a choice: its places could not differ"
            )
