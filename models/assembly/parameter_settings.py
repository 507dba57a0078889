"""What the spec says of each parameter (learning rate, decay, init, adapters), gathered along its path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from configs import Problems
from configs.errors import Location
from configs.registry import Part
from models.assembly.parameter_globs import glob_problems
from models.linears.adapters import adapters_of, is_adapter, tied_linears
from models.rack.choice import Choice
from models.rack.modules import Rack
from models.spec.parameters import GlobFields, LoraSpec, OwnFields, ParameterFields, is_matched
from models.spec.precision import QLORA
from models.spec.rack_fields import RackFields
from models.spec.registries import NORMS, PARTS


@dataclass(frozen=True)
class Level:
    """A component: the path of its module in the rack, where it is written, and what is said there."""

    path: str
    location: Location
    fields: ParameterFields

    def inside(self, name: str) -> str:
        """The name of something below this component, from here."""
        return name[len(self.path) + 1 :] if self.path else name


@dataclass(frozen=True)
class Setting:
    """What holds for one parameter.

    `is_addressed`: its `init` is said of it by a glob, not of all linears around it. `progressive` are the second adapters.
    """

    lr_scale: float = 1.0
    weight_decay: float | None = None
    init: Part | None = None
    is_addressed: bool = False
    lora: LoraSpec | None = None
    bias: bool | None = None
    progressive: LoraSpec | None = None

    def then(self, fields: OwnFields, inside: str, *, is_glob: bool) -> Setting:
        """With what is said nearer to the parameter, which is called `inside` there."""
        bias = getattr(fields, "bias", None) if is_glob else None
        lora, progressive = fields.lora, getattr(fields, "progressive_lora", None)
        return Setting(
            self.lr_scale * fields.lr_scale,
            self.weight_decay if fields.weight_decay is None else fields.weight_decay,
            self.init if fields.init is None else fields.init,
            self.is_addressed or (is_glob and fields.init is not None),
            self.lora if lora is None else lora.at(inside) if lora.apply else lora.within(self.lora),
            self.bias if bias is None else bias,
            self.progressive if progressive is None else progressive.at(inside),
        )

    def without_adapters(self) -> Setting:
        """With what its adapters would freeze, but no adapters."""
        none = {"apply": False}
        lora, progressive = (said and said.model_copy(update=none) for said in (self.lora, self.progressive))
        return replace(self, lora=lora, progressive=progressive)

    @property
    def loras(self) -> dict[str, LoraSpec]:
        """What is said of adapters, by the names that they have in a linear."""
        said = {"lora": self.lora, "progressive": self.progressive}
        return {name: lora for name, lora in said.items() if lora is not None}


class ParameterSettings:
    """The settings of the parameters and linears of a rack, by the names that they have there.

    `below` is the path of the part whose linears and parameters are gone through; all, if it is not told.
    """

    def __init__(self, rack: Rack, spec: RackFields, *, below: str = "") -> None:
        self.rack, self._below = rack, f"{below}." if below else ""
        self.levels = list(_levels(rack, spec))
        self._tied = tuple(f"{name}." for name in tied_linears(rack))
        self._by_path: dict[str, list[Level]] = {}
        self._known: dict[str, Setting] = {}
        for level in self.levels:
            self._by_path.setdefault(level.path, []).append(level)

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """The linears by name; one that stands at two places by its first."""
        named = self.rack.named_modules()
        return {name: module for name, module in named if isinstance(module, nn.Linear) and name.startswith(self._below)}

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters by name."""
        return ((name, parameter) for name, parameter in self.rack.named_parameters() if name.startswith(self._below))

    def of(self, name: str) -> Setting:
        """The setting of a parameter; of a linear, that of its weight."""
        if name not in self._known:
            self._known[name] = self._gathered(name)
        return self._known[name]

    def _gathered(self, name: str) -> Setting:
        levels = self._around(name)
        addressed = [
            (level, fields)
            for level in levels
            for glob, fields in level.fields.parameters.items()
            if is_matched(level.inside(name), glob)
        ]
        setting = Setting(lora=QLORA if any(getattr(level.fields, "precision", None) == "qlora" for level in levels) else None)
        for level, fields in (*((level, level.fields) for level in levels), *addressed):
            setting = setting.then(fields, level.inside(name), is_glob=isinstance(fields, GlobFields))
        # What a tied head's adapter learnt could not be merged: the weight is the embedding's as well.
        return setting.without_adapters() if name.startswith(self._tied) else setting

    def scale_of(self, name: str, setting: Setting) -> float:
        """The `lr_scale` of a parameter of which that is said, 0 if it is frozen.

        Adapters that train freeze their linear, and what else is below the component that says them, unless all of them let it
        be.
        """
        if is_adapter(name):
            own = setting.loras.get(name.partition("adapters.")[2].partition(".")[0])
            return setting.lr_scale if own is None or own.trains else 0.0
        training = {key: lora for key, lora in setting.loras.items() if lora.trains}
        if not training:
            return setting.lr_scale
        base_of = adapters_of(self.rack.get_submodule(name.rpartition(".")[0]))
        freezing = (lora.freeze_base if key in base_of else lora.freeze_others is not False for key, lora in training.items())
        return 0.0 if any(freezing) else setting.lr_scale

    def init_of(self, name: str) -> Part | None:
        """How a parameter starts, if not as its layer starts it.

        What a component says holds for the weights of linears; those that carry `keep_init`, and all other parameters, start
        otherwise only where a glob names them. Embeddings have the `init` of their own component.
        """
        setting = self.of(name)
        if setting.is_addressed or is_adapter(name):
            return None if is_adapter(name) else setting.init
        if name.startswith("embedding."):
            return self.levels[1].fields.init
        is_kept = getattr(self.rack.get_parameter(name), "keep_init", False)
        return setting.init if name.removesuffix(".weight") in self.linears and name.endswith(".weight") and not is_kept else None

    def check(self, problems: Problems) -> None:
        """Report globs that match nothing, or say of something what cannot be said of it."""
        for level in self.levels:
            for place, message in glob_problems(self.rack.get_submodule(level.path), level.fields):
                problems.add((*level.location, *place), message)

    def _around(self, name: str) -> list[Level]:
        """The components that hold a parameter, outermost first."""
        steps = name.split(".")
        paths = ("", *(".".join(steps[: index + 1]) for index in range(len(steps))))
        return [level for path in paths for level in self._by_path.get(path, ())]


def _levels(rack: Rack, spec: RackFields) -> Iterator[Level]:
    """The components of a rack, outer ones first."""
    yield Level("", (), spec)
    yield Level("embedding", ("embedding",), spec.embedding)
    if spec.time is not None:
        yield Level("time_embedding", ("time",), spec.time)
    for i, stack in enumerate(spec.stacks):
        yield Level(f"stacks.{i}", ("stacks", i), stack)
        for j, placed in enumerate(stack.blocks_with_paths()):
            path, location = f"stacks.{i}.blocks.{j}", ("stacks", i, *placed.location)
            yield from _block_levels(rack.get_submodule(path), Level(path, location, placed.block))
    yield Level("head", ("head",), spec.head)
    for name, module in rack.head.named_modules():
        if spec.norm is not None and isinstance(module, NORMS[spec.norm.kind]):
            yield Level(f"head.{name}", ("norm",), spec.norm)


def _block_levels(block: nn.Module, level: Level) -> Iterator[Level]:
    yield level
    path, location = level.path, level.location
    for name in PARTS:
        module, part = block._modules.get(name), getattr(level.fields, name)  # noqa: SLF001
        if module is not None:
            yield Level(f"{path}.{name}", (*location, name), part)
        if isinstance(module, Choice):
            for choice, inner in part.mixers.items():
                if inner is not None:
                    yield Level(f"{path}.{name}.mixers.{choice}", (*location, name, "mixers", choice), inner)
