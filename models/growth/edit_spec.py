"""Growth of a rack's spec: stacks added, taken away, exchanged and put together, each known by its `uid`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from configs.load import validate
from models.assembly.assemble import without_memory
from models.assembly.parameter_globs import carry_globs, carry_targets
from models.spec.backbone import stack_uids
from models.spec.rack_fields import AnyRack
from models.spec.stack import StackSpec

__all__ = [
    "next_uid",
    "stack_position",
    "stack_uids",
    "with_stack",
    "with_stack_replaced",
    "with_stacks_fused",
    "without_stack",
]

BlockPlace = tuple[int, int]
"""The uid of a stack, and a block in it."""


def stack_position(spec: AnyRack, uid: int) -> int:
    """Where the stack stands; ValueError if there is none by that uid."""
    uids = stack_uids(spec)
    if uid not in uids:
        raise ValueError(f"no stack has the uid {uid}: there are {', '.join(map(str, uids))}")
    return uids.index(uid)


def next_uid(spec: AnyRack) -> int:
    """What the next stack to come will be known by."""
    return max(stack_uids(spec)) + 1 if spec.next_uid is None else spec.next_uid


def with_stack(spec: AnyRack, stack: StackSpec, *, position: int) -> AnyRack:
    """The rack with one more stack, which comes to stand at `position` (0: below all others) and gets the next uid.

    What the rack says of `stacks.1` goes on to be said of the same stack.
    """
    if not 0 <= position <= len(spec.stacks):
        raise ValueError(f"position = {position} must be from 0 to {len(spec.stacks)}, the number of stacks")
    stacks = _by_uid(spec)
    stacks.insert(position, (next_uid(spec), stack.to_dict()))
    return _of_stacks(spec, stacks)


def without_stack(spec: AnyRack, uid: int) -> AnyRack:
    """The rack without a stack, whose uid no other will get."""
    position, stacks = stack_position(spec, uid), _by_uid(spec)
    if len(stacks) == 1:
        raise ValueError(f"stack {uid} is the only one: a rack has at least one")
    return _of_stacks(spec, stacks[:position] + stacks[position + 1 :])


def with_stack_replaced(spec: AnyRack, uid: int, stack: StackSpec) -> AnyRack:
    """The rack with another stack at the place of one; since it is another, it gets the next uid."""
    position, stacks = stack_position(spec, uid), _by_uid(spec)
    stacks[position] = (next_uid(spec), stack.to_dict())
    return _of_stacks(spec, stacks)


def with_stacks_fused(spec: AnyRack, uids: Sequence[int]) -> AnyRack:
    """The rack with neighbours, lowest first, in one stack with the uid of the first: the same blocks, and the same function.

    Raises:
        ValueError: for stacks that are no neighbours, or of which different things are said, or something of single blocks.
    """
    positions = [stack_position(spec, uid) for uid in uids]
    if len(uids) < 2 or positions != list(range(positions[0], positions[0] + len(uids))):
        raise ValueError(f"uids = {list(uids)} must be those of two or more neighbours, lowest first: {list(stack_uids(spec))}")
    fused = [spec.stacks[position] for position in positions]
    around = [{**stack.own_fields(), "uid": None} for stack in fused]
    for uid, said, stack in zip(uids, around, fused, strict=True):
        if said != around[0]:
            names = [name for name, value in said.items() if value != around[0][name]]
            raise ValueError(
                f"stacks {uids[0]} and {uid} differ in {', '.join(names)}: one stack says one thing of all its blocks"
            )
        if stack.parameters or any(
            "blocks" in glob for lora in (stack.lora, stack.progressive_lora) if lora for glob in lora.targets
        ):
            raise ValueError(f"stack {uid} says something of blocks by their number in it: say it of the blocks, or of the rack")
    blocks = [(uid, index, block) for uid, stack in zip(uids, fused, strict=True) for index, block in enumerate(stack.expanded())]
    moved = {(uid, index): (uids[0], new) for new, (uid, index, _) in enumerate(blocks)}
    stacks = _by_uid(spec)
    stacks[positions[0] : positions[-1] + 1] = [(uids[0], {**around[0], "blocks": [block.to_dict() for *_, block in blocks]})]
    return _of_stacks(spec, stacks, moved)


def _by_uid(spec: AnyRack) -> list[tuple[int, dict[str, Any]]]:
    return [(uid, stack.to_dict()) for uid, stack in zip(stack_uids(spec), spec.stacks, strict=True)]


def _of_stacks(
    spec: AnyRack, stacks: Sequence[tuple[int, dict[str, Any]]], moved: Mapping[BlockPlace, BlockPlace] | None = None
) -> AnyRack:
    """The rack of other stacks, all with their uids; blocks stay where they are in their stack unless they are `moved`."""
    uids = [uid for uid, _ in stacks]
    coming = max(next_uid(spec), max(uids) + 1)
    tree = {**spec.to_dict(), "stacks": [{**stack, "uid": uid} for uid, stack in stacks]}
    tree["next_uid"] = None if coming == max(uids) + 1 else coming
    if spec.parameters or spec.lora is not None:
        rename = _renaming(stack_uids(spec), uids, moved or {})
        carried = carry_globs(spec.parameters, without_memory(spec), rename)
        tree["parameters"] = {glob: fields.to_dict() for glob, fields in carried.items()}
        if spec.lora is not None:
            tree["lora"] = carry_targets(spec.lora, without_memory(spec), rename).to_dict()
    return validate(type(spec), tree, "rack")


def _renaming(before: Sequence[int], after: Sequence[int], moved: Mapping[BlockPlace, BlockPlace]) -> Callable[[str], str | None]:
    """What a parameter of the rack is called afterwards; None if its stack has gone."""

    def rename(name: str) -> str | None:
        if not name.startswith("stacks."):
            return name
        _, stack, blocks, block, *rest = name.split(".")
        place = (before[int(stack)], int(block))
        uid, index = moved.get(place, place)
        return ".".join(["stacks", str(after.index(uid)), blocks, str(index), *rest]) if uid in after else None

    return rename
