"""Spaces: racks whose blocks still have a choice. Where the choices are, and what becomes of the spec when they are made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from models.build import without_memory
from models.parameters import GlobFields, Globs, ModelPart, carry_globs
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
    chosen: list[ModelPart | None] = []
    renamed = {}
    for (path, part, _), name in zip(searched(space), placement, strict=True):
        inner, inside = part.mixers[name], f"mixers.{name}."
        renamed[f"{path}.{inside}"] = f"{path}."
        chosen.append(inner and _chosen(inner, part, inside, _names_below(space, path) if part.parameters else []))

    def rename(name: str) -> str:
        return next((name.replace(old, new, 1) for old, new in renamed.items() if name.startswith(old)), name)

    return _with_parts(space, chosen, rename)


def thinned(space: RackSpec, placements: Sequence[Placement]) -> RackSpec:
    """The space of the choices that any of the placements makes; where the main choice goes, the first one left is the main."""
    parts: list[ModelPart | None] = []
    for (path, part, _), *chosen in zip(searched(space), *placements, strict=True):
        left = OrderedDict((name, inner) for name, inner in part.mixers.items() if name in chosen)
        main = part.main if part.main in left else next(iter(left))
        update: dict[str, Any] = {"mixers": left, "main": main}
        if part.parameters:
            names = _names_below(space, path)
            kept = [name for name in names if name.split(".")[1] in left]
            update["parameters"] = carry_globs(part.parameters, names, kept, rename=str)
        parts.append(part.model_copy(update=update))
    return _with_parts(space, parts, rename=str)


def _chosen(inner: ModelPart, part: ModelPart, inside: str, names: Sequence[str]) -> ModelPart:
    """A choice with what is said of it by the part that it replaces."""
    new = [name.removeprefix(inside) for name in names if name.startswith(inside)]
    globs = carry_globs(part.parameters, names, new, lambda name: name.removeprefix(inside))
    for glob, fields in inner.parameters.items():
        globs[glob] = fields.below(globs.pop(glob)) if glob in globs else fields  # what is said nearer comes last
    return inner.below(part).model_copy(update={"parameters": globs})


def _names_below(space: RackSpec, path: str) -> list[str]:
    """The names, from there, of all parameters of a part."""
    return list(dict(without_memory(space).get_submodule(path).named_parameters()))


def _with_parts(space: RackSpec, parts: Sequence[ModelPart | None], rename: Callable[[str], str]) -> RackSpec:
    """The rack with its stochastic parts replaced in order; `rename` tells what becomes of a parameter's name."""
    rest, tree = iter(parts), space.to_dict()
    for index, stack in enumerate(space.stacks):
        blocks = stack.expanded()
        if any(_choices(block) for block in blocks):
            tree["stacks"][index] = {**stack.own_fields(), "blocks": [_with_halves(block, rest) for block in blocks]}
    globs = _take_globs(tree)
    rack = type(space).model_validate(tree)
    if not globs:
        return rack
    names, new_names = ([*dict(rack.named_parameters())] for rack in map(without_memory, (space, rack)))
    for path, (place, said) in globs.items():
        inside = f"{path}." if path else ""
        old, new = ([name.removeprefix(inside) for name in each if name.startswith(inside)] for each in (names, new_names))
        carried = carry_globs(said, old, new, partial(_renamed_below, rename, inside))
        place["parameters"] = {glob: fields.to_dict() for glob, fields in carried.items()}
    return type(space).model_validate(tree)


def _renamed_below(rename: Callable[[str], str], inside: str, name: str) -> str:
    return rename(f"{inside}{name}").removeprefix(inside)


def _take_globs(tree: dict[str, Any]) -> dict[str, tuple[dict[str, Any], Globs]]:
    """Take the `parameters` of a raw rack, its stacks and blocks out of it: by path, from where and what was said."""
    places: dict[str, dict[str, Any]] = {"": tree}
    for i, stack in enumerate(tree["stacks"]):
        places[f"stacks.{i}"] = stack
        for j, block in enumerate(stack["blocks"] if isinstance(stack.get("blocks"), list) else ()):
            places[f"stacks.{i}.blocks.{j}"] = block
    taken = {path: (place, place.pop("parameters")) for path, place in places.items() if "parameters" in place}
    return {path: (place, {glob: GlobFields(**fields) for glob, fields in said.items()}) for path, (place, said) in taken.items()}


def _with_halves(block: BlockSpec, parts: Iterator[ModelPart | None]) -> dict[str, Any]:
    made = {half: next(parts) for half in _choices(block)}
    return {**block.to_dict(), **{half: part and part.to_dict() for half, part in made.items()}}


def _choices(block: BlockSpec) -> dict[Half, Any]:
    halves: dict[Half, Any] = {"mixer": block.mixer, "mlp": block.mlp}
    return {half: part for half, part in halves.items() if part is not None and part.kind == STOCHASTIC}
