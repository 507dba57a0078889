"""Checks the globs under `parameters:`, and rewrites them when parameters get other names."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from configs import Registry
from configs.errors import Location, known_names, nearest_name
from models.linears.adapters import AdaptedLinear, Adapter, replace, set_bias, tied_linears
from models.linears.quantised import QuantisedLinear
from models.spec.meta_device import FastMeta
from models.spec.parameters import GlobFields, Globs, LoraSpec, ModelPart, ParameterFields, is_matched


def glob_problems(module: nn.Module, fields: ParameterFields) -> Iterator[tuple[Location, str]]:
    """The globs of a component that are wrong, where, and why, given its module as it was built."""
    names = [*_parameter_names(module), *(name for name, _ in module.named_modules() if name)]
    linears = {f"{name}.weight": part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    for glob, said in fields.parameters.items():
        if not any(fnmatchcase(name, glob) for name in names):
            yield ("parameters", glob), _no_match(module, glob, names)
        elif message := _not_of_linears(glob, said, [part for name, part in linears.items() if is_matched(name, glob)]):
            yield ("parameters", glob), message
    loras: list[tuple[Location, LoraSpec | None]] = [
        (("lora",), fields.lora),
        (("progressive_lora",), getattr(fields, "progressive_lora", None)),
        *((("parameters", glob, "lora"), said.lora) for glob, said in fields.parameters.items()),
    ]
    is_said = any(lora is not None for _, lora in loras)
    tied = {f"{name}.weight": other for name, other in tied_linears(module).items()} if is_said else {}
    for place, lora in loras:
        if lora is not None and lora.apply and place[0] == "parameters" and (message := _all_tied(place[1], linears, tied)):
            yield place, message
        for index, glob in enumerate(() if lora is None else lora.targets):
            if glob != "*" and not any(is_matched(name.removesuffix(".weight"), glob) for name in linears):
                anywhere = f"did you mean '*.{glob}'? " if glob in _lasts(linears) else ""  # deeper down
                told = anywhere or known_names(glob, _lasts(linears))
                yield (*place, "targets", index), f"'{glob}' matches no linear below; {told.strip()}"
            elif glob != "*" and (message := _all_tied(glob, linears, tied)):
                yield (*place, "targets", index), message


def _all_tied(glob: Any, linears: Iterable[str], tied: Mapping[str, str]) -> str | None:
    """That adapters are asked for where there are none: of the linears that a glob matches, all share their weights."""
    matched = [name for name in linears if is_matched(name.removesuffix(".weight"), glob)]
    if not matched or not all(name in tied for name in matched):
        return None
    return f"'{glob}' matches {matched[0]} alone, which is also {tied[matched[0]]}: a weight that is shared so has no adapter"


def _parameter_names(module: nn.Module) -> list[str]:
    """The parameters by name; the weight of a linear is one also where it is stored in few bits."""
    stored = (name for name, part in module.named_modules() if name and isinstance(part, QuantisedLinear))
    return [*dict(module.named_parameters()), *(f"{name}.weight" for name in stored)]


def _weights(module: nn.Module) -> list[str]:
    return [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def _lasts(names: Iterable[str]) -> list[str]:
    """The last words of the names of weights."""
    return list(dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names))


@lru_cache(maxsize=4096)
def part_glob_problems(
    registry: Registry, part: ModelPart, d_model: int, max_length: int | None
) -> tuple[tuple[Location, str], ...]:
    """The same of a part by itself and of the choices in it, each at its place in the part; nothing is allocated."""
    choices = {("mixers", name): each for name, each in part.options().get("mixers", {}).items() if each is not None}
    here: list[tuple[tuple[str, ...], ModelPart]] = [((), part), *choices.items()]
    if not any(each.parameters or each.lora for _, each in here):
        return ()
    with torch.device("meta"), FastMeta():
        module = registry.build(part, d_model=d_model, max_length=max_length)
        for place, each in here:
            _shape(module.get_submodule(".".join(place)), each)
    problems = [(place, glob_problems(module.get_submodule(".".join(place)), each)) for place, each in here]
    return tuple(((*place, *inside), message) for place, found in problems for inside, message in found)


def _shape(module: nn.Module, part: ModelPart) -> None:
    """Give the linears of a part the biases and adapters that it speaks of itself."""
    for name, linear in list(module.named_modules()):
        if isinstance(linear, nn.Linear):
            said = [part, *(fields for glob, fields in part.parameters.items() if is_matched(f"{name}.weight", glob))]
            if any(getattr(fields, "bias", None) is True for fields in said[1:]):
                set_bias(linear, has_bias=True)
            if any(fields.lora is not None for fields in said) and not isinstance(linear, AdaptedLinear):
                replace(module, name, AdaptedLinear(linear, {"lora": Adapter(1, 1, rank=1, alpha=1)}))


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
    ends = {name.removesuffix(".weight").rpartition(".")[2]: name for name in reversed(names)}
    meant = nearest_name(glob, names) or ends.get(nearest_name(glob.strip("*.").rpartition(".")[2], ends) or "", names[0])
    return f"'{glob}' matches no parameter; the nearest is '{meant}'"


def carry_globs(globs: Globs, module: nn.Module, rename: Callable[[str], str | None]) -> Globs:
    """Globs that say of a module's renamed parameters what was said of them under their old name; None is the name of one gone.

    Those that come to the same are kept, and those that meant nothing that is left are dropped. If any comes to something else,
    all become the names that they stood for.
    """
    renamed = {name: new for name in _parameter_names(module) if (new := rename(name)) is not None}
    kept = Globs(
        (glob, fields.model_copy(update={"lora": fields.lora and carry_targets(fields.lora, module, rename)}))
        for glob, fields in globs.items()
        if any(is_matched(name, glob) for name in renamed)
    )
    if all(is_matched(old, glob) == is_matched(new, glob) for old, new in renamed.items() for glob in kept):
        return kept
    return _spelt_out(module, [globs], renamed)


def carry_targets(lora: LoraSpec, module: nn.Module, rename: Callable[[str], str | None]) -> LoraSpec:
    """Adapters of the same linears of a module under their new names; where they are of none that is left, none but what they
    freeze is left of them.
    """
    if lora.targets == ("*",):
        return lora
    linears = {name.removesuffix(".weight"): new.removesuffix(".weight") for name in _weights(module) if (new := rename(name))}
    kept = tuple(glob for glob in lora.targets if any(is_matched(name, glob) for name in linears))
    if any(is_matched(old, glob) != is_matched(new, glob) for old, new in linears.items() for glob in kept):
        kept = tuple(new for old, new in linears.items() if any(is_matched(old, glob) for glob in kept))
    if kept:
        return lora.model_copy(update={"targets": kept})
    return lora.model_copy(update={"apply": False, "targets": ("*",), "freeze_others": lora.freeze_others is not False})


def laid_over(inner: Globs, outer: Globs, module: nn.Module) -> Globs:
    """The globs of a module and those of what was around it, as the globs of one component; what the inner say holds."""
    if not inner.keys() & outer.keys():
        return Globs([*outer.items(), *inner.items()])
    return _spelt_out(module, [outer, inner], {name: name for name in _parameter_names(module)})


def _spelt_out(module: nn.Module, layers: Sequence[Globs], renamed: Mapping[str, str]) -> Globs:
    """An entry for each parameter of which something is said, under its new name; bias and adapters are said at weights."""
    weights = set(_weights(module))
    spelt: Globs = Globs()
    for name, new in renamed.items():
        said = [fields for globs in layers for glob, fields in globs.items() if is_matched(name, glob)]
        merged = GlobFields()
        for fields in said:
            merged = fields.below(merged)
        if said:
            # Targets were names from where they were said.
            lora = merged.lora and merged.lora.at(name).model_copy(update={"targets": ("*",)})
            silenced = {"lora": lora} if name in weights else {"bias": None, "lora": None}
            spelt[new] = merged.model_copy(update=silenced)
    return spelt
