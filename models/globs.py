"""What is wrong with the globs of `parameters`: those that match nothing, or say of something what cannot be said of it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache

import torch
from torch import nn

from configs import Registry
from configs.errors import Location, nearest_name
from models.parameters import GlobFields, ModelPart, ParameterFields, is_matched


def glob_problems(module: nn.Module, fields: ParameterFields) -> Iterator[tuple[str, str]]:
    """The globs of a component that are wrong, and why, given its module as it was built."""
    names = [*dict(module.named_parameters()), *(name for name, _ in module.named_modules() if name)]
    linears = {f"{name}.weight": part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    for glob, said in fields.parameters.items():
        if not any(fnmatchcase(name, glob) for name in names):
            yield glob, _no_match(module, glob, names)
        elif message := _not_of_linears(glob, said, [part for name, part in linears.items() if is_matched(name, glob)]):
            yield glob, message


@lru_cache(maxsize=4096)
def part_glob_problems(
    registry: Registry, part: ModelPart, d_model: int, max_length: int | None
) -> tuple[tuple[Location, str], ...]:
    """The same of a part by itself and of the choices in it, each at its place in the part; nothing is allocated."""
    choices = [each for each in part.options().get("mixers", {}).values() if each is not None]
    if not any(each.parameters for each in (part, *choices)):
        return ()
    with torch.device("meta"):
        module = registry.build(part, d_model=d_model, max_length=max_length)
    inner = {("mixers", name): each for name, each in part.options().get("mixers", {}).items() if each is not None}
    found: list[tuple[Location, str]] = []
    here: list[tuple[tuple[str, ...], ModelPart]] = [((), part), *inner.items()]
    for place, each in here:
        below = module.get_submodule(".".join(place))
        for name, linear in below.named_modules():
            said = [fields.bias for glob, fields in each.parameters.items() if is_matched(f"{name}.weight", glob)]
            if isinstance(linear, nn.Linear) and linear.bias is None and True in said:
                linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
        found += [((*place, "parameters", glob), message) for glob, message in glob_problems(below, each)]
    return tuple(found)


def _not_of_linears(glob: str, said: GlobFields, linears: list[nn.Linear]) -> str | None:
    wanted = " and ".join(name for name in ("bias", "lora") if getattr(said, name) is not None)
    if wanted and not linears:
        return f"'{glob}' matches no linear, but only linears have {wanted}"
    if said.bias is False and all(getattr(linear.bias, "keep_init", False) for linear in linears):
        return f"the bias of '{glob}' is part of the mixer's formula: it cannot be left out"
    return None


def _no_match(module: nn.Module, glob: str, names: list[str]) -> str:
    for part in module.modules():
        for fused, parts in getattr(part, "fused", {}).items():
            if glob.rpartition(".")[2] in parts:
                return f"'{glob}' is a part of the fused linear '{fused}', which can only be set as a whole"
    if not names:
        return f"'{glob}' matches nothing: there are no parameters here"
    return f"'{glob}' matches no parameter; the nearest is '{nearest_name(glob, names) or names[0]}'"
