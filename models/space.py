"""Spaces: racks whose blocks still have a choice. Where the choices are, and what becomes of the spec when they are made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from models.build import without_memory
from models.parameters import ModelPart, ParameterFields, carry_globs
from models.placement import Half, Placement, Slot

if TYPE_CHECKING:
    from models.spec import BackboneSpec, BlockSpec, RackSpec

STOCHASTIC = "stochastic"
"""The kind, in both registries, of a part that is still to be chosen."""


def searched(space: BackboneSpec) -> Iterator[tuple[str, Any, Slot]]:
    """The stochastic parts in the order of the data flow: the path of each in the built rack, its spec, and the slot it is."""
    places = [
        (f"stacks.{i}.blocks.{j}", block) for i, stack in enumerate(space.stacks) for j, block in enumerate(stack.expanded())
    ]
    for layer, (path, block) in enumerate(places):
        for half, part in _choices(block).items():
            yield f"{path}.{half}", part, Slot(layer, half, tuple(part.mixers), part.main)


def placed(space: RackSpec, placement: Placement) -> RackSpec:
    """The rack in which every stochastic part is replaced by the one that the placement names."""
    chosen, renamed = [], {}
    for (path, part, _), name in zip(searched(space), placement, strict=True):
        inner = part.mixers[name]
        chosen.append(None if inner is None else inner.below(part))
        renamed[f"{path}.mixers.{name}."] = f"{path}."

    def rename(name: str) -> str:
        return next((name.replace(old, new, 1) for old, new in renamed.items() if name.startswith(old)), name)

    return _with_parts(space, chosen, rename)


def thinned(space: RackSpec, placements: Sequence[Placement]) -> RackSpec:
    """The space of the choices that any of the placements makes; where the main choice goes, the first one left is the main."""
    parts = []
    for (_, part, _), *names in zip(searched(space), *placements, strict=True):
        left = OrderedDict((name, inner) for name, inner in part.mixers.items() if name in names)
        main = part.main if part.main in left else next(iter(left))
        parts.append(part.model_copy(update={"mixers": left, "main": main}))
    return _with_parts(space, parts, rename=str)


def _with_parts(space: RackSpec, parts: Sequence[ModelPart | None], rename: Callable[[str], str]) -> RackSpec:
    """The rack with its stochastic parts replaced in order; `rename` tells what becomes of a parameter's name."""
    rest, tree = iter(parts), space.to_dict()
    for index, stack in enumerate(space.stacks):
        blocks = stack.expanded()
        if any(_choices(block) for block in blocks):
            said = {key: value for key, value in tree["stacks"][index].items() if key in ParameterFields.model_fields}
            tree["stacks"][index] = {**said, "blocks": [_with_halves(block, rest) for block in blocks]}
    rack = type(space).model_validate({**tree, "parameters": {}})
    if not space.parameters:
        return rack
    names, new_names = (list(dict(without_memory(spec).named_parameters())) for spec in (space, rack))
    return rack.model_copy(update={"parameters": carry_globs(space.parameters, names, new_names, rename)})


def _with_halves(block: BlockSpec, parts: Iterator[ModelPart | None]) -> dict[str, Any]:
    made = {half: next(parts) for half in _choices(block)}
    return {**block.to_dict(), **{half: part and part.to_dict() for half, part in made.items()}}


def _choices(block: BlockSpec) -> dict[Half, Any]:
    halves: dict[Half, Any] = {"mixer": block.mixer, "mlp": block.mlp}
    return {half: part for half, part in halves.items() if part is not None and part.kind == STOCHASTIC}
