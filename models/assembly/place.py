"""Turns a space (layers with open choices) into the model of a placement, or into a smaller space."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from models.assembly.assemble import without_memory
from models.assembly.parameter_globs import carry_globs, laid_over
from models.rack.choice import STOCHASTIC
from models.spec.backbone import BackboneSpec
from models.spec.block import BlockSpec
from models.spec.parameters import GlobFields, Globs, ModelPart
from models.spec.placement import Placement, Slot, Sublayer
from models.spec.rack_fields import AnyRack


def searched(space: BackboneSpec) -> Iterator[tuple[str, Any, Slot]]:
    """The stochastic parts in the order of the data flow: the path of each in the built rack, its spec, and the slot it is."""
    places = [
        (f"stacks.{i}.blocks.{j}", block) for i, stack in enumerate(space.stacks) for j, block in enumerate(stack.expanded())
    ]
    for layer, (path, block) in enumerate(places):
        for sublayer, part in _choices(block).items():
            yield f"{path}.{sublayer}", part, Slot(layer, sublayer, tuple(part.mixers), part.main)


def apply_placement(space: AnyRack, placement: Placement) -> AnyRack:
    """The rack in which every stochastic part is replaced by the one that the placement names."""
    chosen: list[ModelPart | None] = []
    moved: dict[str, str | None] = {}
    for (path, part, slot), name in zip(searched(space), placement, strict=True):
        inner = part.mixers[name]
        chosen.append(None if inner is None else _chosen(space, path, part, name))
        moved |= {f"{path}.mixers.{name}.": f"{path}.", f"{path}.": None}
        if inner is None:  # without a part its half of the block has no norms
            block = path.removesuffix(slot.sublayer)
            moved |= {f"{block}{slot.sublayer}_norm.": None, f"{block}{slot.sublayer}_post_norm.": None}
    return _with_parts(space, chosen, partial(_renamed, moved))


def keep_choices(space: AnyRack, placements: Sequence[Placement]) -> AnyRack:
    """The space of the choices that any of the placements makes; where the main choice goes, the first one left is the main."""
    parts: list[ModelPart | None] = []
    moved: dict[str, str | None] = {}
    for (path, part, _), *chosen in zip(searched(space), *placements, strict=True):
        left = OrderedDict((name, inner) for name, inner in part.mixers.items() if name in chosen)
        main = part.main if part.main in left else next(iter(left))
        gone: dict[str, str | None] = {f"mixers.{name}.": None for name in part.mixers if name not in left}
        moved |= {f"{path}.{name}": None for name in gone}
        module = _built(space, path) if part.parameters else nn.Module()
        globs = carry_globs(part.parameters, module, partial(_renamed, gone))
        parts.append(part.model_copy(update={"mixers": left, "main": main, "parameters": globs}))
    return _with_parts(space, parts, partial(_renamed, moved))


def _renamed(moved: Mapping[str, str | None], name: str) -> str | None:
    """What becomes of a parameter's name, by prefixes; None for one that is gone."""
    for old, new in moved.items():
        if name.startswith(old):
            return None if new is None else new + name.removeprefix(old)
    return name


def _chosen(space: AnyRack, path: str, part: Any, name: str) -> ModelPart:
    """A choice with what is said of it by the part that it replaces."""
    inner: ModelPart = part.mixers[name]
    if not part.parameters:
        return inner.below(part)
    outer = carry_globs(part.parameters, _built(space, path), partial(_renamed, {f"mixers.{name}.": "", "": None}))
    globs = laid_over(inner.parameters, outer, _built(space, f"{path}.mixers.{name}"))
    return inner.below(part).model_copy(update={"parameters": globs})


def _built(space: AnyRack, path: str) -> nn.Module:
    return without_memory(space).get_submodule(path)


def _with_parts(space: AnyRack, parts: Sequence[ModelPart | None], rename: Callable[[str], str | None]) -> AnyRack:
    """The rack with its stochastic parts replaced in order; `rename` tells what becomes of a parameter's name."""
    rest, tree = iter(parts), space.to_dict()
    for index, stack in enumerate(space.stacks):
        blocks = stack.expanded()
        if any(_choices(block) for block in blocks):
            tree["stacks"][index] = {**stack.own_fields(), "blocks": [_with_halves(block, rest) for block in blocks]}
    for path, (place, globs) in _globs(tree).items():
        inside = f"{path}." if path else ""
        carried = carry_globs(globs, _built(space, path), partial(_renamed_below, rename, inside))
        place["parameters"] = {glob: fields.to_dict() for glob, fields in carried.items()}
    return type(space).model_validate(tree)


def _renamed_below(rename: Callable[[str], str | None], inside: str, name: str) -> str | None:
    new = rename(f"{inside}{name}")
    return None if new is None else new.removeprefix(inside)


def _globs(tree: dict[str, Any]) -> dict[str, tuple[dict[str, Any], Globs]]:
    """What a raw rack, its stacks and blocks say of parameters: by path, where and what."""
    places: dict[str, dict[str, Any]] = {"": tree}
    for i, stack in enumerate(tree["stacks"]):
        places[f"stacks.{i}"] = stack
        for j, block in enumerate(stack["blocks"] if isinstance(stack.get("blocks"), list) else ()):
            places[f"stacks.{i}.blocks.{j}"] = block
    said = {path: (place, place["parameters"]) for path, place in places.items() if place["parameters"]}
    return {
        path: (place, Globs((glob, GlobFields(**each)) for glob, each in globs.items())) for path, (place, globs) in said.items()
    }


def _with_halves(block: BlockSpec, parts: Iterator[ModelPart | None]) -> dict[str, Any]:
    made = {sublayer: next(parts) for sublayer in _choices(block)}
    return {**block.to_dict(), **{sublayer: part and part.to_dict() for sublayer, part in made.items()}}


def _choices(block: BlockSpec) -> dict[Sublayer, Any]:
    sublayers: dict[Sublayer, Any] = {"mixer": block.mixer, "mlp": block.mlp}
    return {sublayer: part for sublayer, part in sublayers.items() if part is not None and part.kind == STOCHASTIC}
