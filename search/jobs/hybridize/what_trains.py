"""What of a conversion trains: globs of parameters' names, which are checked before a weight is read."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from configs import ConfigError
from models import RackSpec
from models.assembly.assemble import without_memory
from models.spec.parameters import LoraSpec
from search.jobs.hybridize.lora import with_lora
from search.jobs.hybridize.spec import CHANGED_LAYERS, HybridizeSpec


def stand_ins(spec: HybridizeSpec, space: RackSpec) -> list[str]:
    """Globs of all that may stand in for a part of the model, and has something to learn."""
    names = _parameters(space)
    globs = [f"*.{part}.mixers.{name}.*" for part, own in (("mixer", spec.choices), ("mlp", spec.mlp_choices)) for name in own]
    return [glob for glob in globs if _is_in(glob, names)]


def check_globs(spec: HybridizeSpec, space: RackSpec) -> None:
    """ConfigError for a glob that names no parameter, whatever is placed, or a supernet of which nothing would train."""
    problems, stage, slots = [], spec.supernet, space.slots()
    if stage is not None:
        names = _parameters(space)
        problems += [
            _unknown("supernet", index, glob) for index, glob in enumerate(stage.trains or ()) if not _is_in(glob, names)
        ]
        if stage.trains is None and not stand_ins(spec, space):
            problems.append("supernet: nothing that may stand in has anything to learn: leave it out")
    # Every name of every slot stands in one of these.
    placements = [
        tuple(slot.names[min(number, len(slot.names) - 1)] for slot in slots)
        for number in range(max(len(slot.names) for slot in slots))
    ]
    placed = {name for placement in placements for name in _parameters(space.place(placement))}
    globs = [(glob, glob.replace(CHANGED_LAYERS, "stacks.*.blocks.*")) for glob in spec.distil.trains]
    problems += [_unknown("distil", index, glob) for index, (glob, anywhere) in enumerate(globs) if not _is_in(anywhere, placed)]
    if not problems and spec.distil.lora is not None:
        problems += _without_adapters(spec.distil.lora, [space.place(placement) for placement in placements], globs)
    if problems:
        raise ConfigError("\n".join(problems))


def _without_adapters(lora: LoraSpec, racks: Sequence[RackSpec], globs: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong, if none of the racks has a linear for adapters."""
    refused = []
    for rack in racks:
        try:
            with_lora(rack, lora, [anywhere for _, anywhere in globs])
        except ConfigError as error:
            refused.append(str(error))
    return refused[:1] if len(refused) == len(racks) else []


def _parameters(rack: RackSpec) -> set[str]:
    return {name for name, _ in without_memory(rack).named_parameters()}


def _is_in(glob: str, names: set[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names)


def _unknown(part: str, index: int, glob: str) -> str:
    return f"{part}.trains[{index}]: no parameter is called {glob}"
