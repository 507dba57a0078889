"""Checks that a rack can grow into another one: same sizes, same blocks under known uids, nothing lost."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from models.assembly.assemble import without_memory
from models.linears.adapters import adapters_of
from models.rack.modules import Rack
from models.spec.backbone import stack_uids
from models.spec.block import BlockSpec
from models.spec.parameters import ModelPart
from models.spec.precision import STORED_AS, TRAINED_AS_STORED
from models.spec.rack_fields import RackFields
from models.spec.registries import PARTS
from models.spec.stack import StackSpec

SIZES = ("d_model", "vocab_size", "max_length", "residual_dtype")


def check_growth(rack: Rack, before: RackFields, after: RackFields) -> None:
    """ValueError if the rack is not of the spec `before`, or `after` asks for what cannot be carried over."""
    expected = {name: tensor.shape for name, tensor in without_memory(before).state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in rack.state_dict().items()}:
        raise ValueError("the rack is not of the spec that it is to grow out of: their parameters differ")
    for what in (*_changed(before, after), *_new_shares(before, after)):
        raise ValueError(what)
    for uid, origins in origins_of(before, after).items():
        for what in _stack_problems(before, after, uid, origins):
            raise ValueError(f"stack {uid}: {what}")


def origins_of(before: RackFields, after: RackFields) -> dict[int, list[int]]:
    """The stacks that each known stack is made of, by uid: itself, and those above it that it has been fused with."""
    old, new = stack_uids(before), stack_uids(after)
    found = {}
    for uid, stack in zip(new, after.stacks, strict=True):
        if uid in old:
            origins = [uid]
            for above in old[old.index(uid) + 1 :]:
                if above in new or sum(_n_blocks(before, each) for each in origins) >= len(stack.expanded()):
                    break
                origins.append(above)
            found[uid] = origins
    return found


def _n_blocks(spec: RackFields, uid: int) -> int:
    return len(_stack(spec, uid).expanded())


def _stack(spec: RackFields, uid: int) -> StackSpec:
    return spec.stacks[stack_uids(spec).index(uid)]


def _changed(before: RackFields, after: RackFields) -> Iterator[str]:
    for name in SIZES:
        if getattr(before, name) != getattr(after, name):
            yield f"{name} = {getattr(before, name)} cannot become {getattr(after, name)}"
    for name in ("embedding", "head", "norm"):
        if _kind(getattr(before, name)) != _kind(getattr(after, name)):
            yield f"the {name} cannot become another one"
    if after.tie_embeddings and not before.tie_embeddings:
        yield "the head has a weight of its own: it cannot be tied to the embedding again"
    if before.time is not None and (after.time is None or before.time.sizes() != after.time.sizes()):
        yield "the time embedding cannot go, or become another one"


def _new_shares(before: RackFields, after: RackFields) -> Iterator[str]:
    """A new stack is drawn by itself."""
    shares = {uid: {block.share for block in _stack(after, uid).expanded()} - {None} for uid in stack_uids(after)}
    for uid in set(shares) - set(stack_uids(before)):
        for other in set(shares) - {uid}:
            for name in shares[uid] & shares[other]:
                yield f"stack {uid} is new, but shares '{name}' with stack {other}: a new stack has weights of its own"


def _stack_problems(before: RackFields, after: RackFields, uid: int, origins: list[int]) -> Iterator[str]:
    new = _stack(after, uid)
    blocks = [block for each in origins for block in _stack(before, each).expanded()]
    if [_structure(block) for block in blocks] != [_structure(block) for block in new.expanded()]:
        yield "its blocks differ from those that it had; another stack has another uid"
        return
    for each in origins:
        yield from _precision_problems(_stack(before, each), new)
    were, are = (
        [
            block
            for uid, stack in zip(stack_uids(spec), without_memory(spec).stacks, strict=True)
            if uid in which
            for block in stack.blocks  # type: ignore[union-attr]
        ]
        for spec, which in ((before, origins), (after, [uid]))
    )
    for index, (old, grown) in enumerate(zip(were, are, strict=True)):
        linears = _linears(grown)
        for name, linear in _linears(old).items():
            yield from (f"blocks.{index}.{name}: {what}" for what in _linear_problems(linear, linears[name]))


def _precision_problems(old: StackSpec, new: StackSpec) -> Iterator[str]:
    is_same = old.precision == new.precision
    if old.stored and not (new.stored and is_same):
        yield f"its weights are stored as {STORED_AS[old.precision]}, and stay so: give it precision '{old.precision}', stored"
    elif old.precision in TRAINED_AS_STORED and not (new.stored or new.precision in TRAINED_AS_STORED):
        yield f"its weights have been trained as {old.precision}: as '{new.precision}' it would be another function"


def _linear_problems(old: nn.Linear, new: nn.Linear) -> Iterator[str]:
    if (old.bias is None) != (new.bias is None):
        yield "a bias cannot come or go"
    left = adapters_of(new)
    for name, adapter in adapters_of(old).items():
        if name not in left:
            yield f"its adapter '{name}' would be lost"
        elif left[name].rank != adapter.rank:
            yield f"its adapter '{name}' has rank {adapter.rank}, which cannot become {left[name].rank}"


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}


def _structure(block: BlockSpec) -> dict[str, Any]:
    """What is built of a block, whatever is said of its parameters."""
    parts = {name: _kind(getattr(block, name)) for name in PARTS}
    return {**parts, **{name: getattr(block, name) for name in ("output_scale", "dropout", "share")}}


def _kind(part: ModelPart | None) -> Any:
    """The kind and the options of a part, and of the choices in it."""
    if not isinstance(part, ModelPart):
        return part
    options = {name: value for name, value in part.options().items() if name != "mixers"}
    return part.kind, options, {name: _kind(inner) for name, inner in part.options().get("mixers", {}).items()}
