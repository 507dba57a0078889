"""Parameter fields: what a spec may say about the parameters of a component, and of everything below it."""

from __future__ import annotations

from collections import OrderedDict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from configs import Problems, Registry, Spec
from configs.registry import Part

if TYPE_CHECKING:
    from torch import nn

INITS = Registry("models.parts.inits", "init", ("n_blocks",))


class LoraSpec(Spec):
    """Low-rank adapters of the linears below a component (Hu et al. 2021, arXiv 2106.09685).

    `alpha` (None: the rank) over the rank scales what they add; with `rslora` over its root. With `fit`, the rank is at most half
    of the smaller side of each linear, at least 1. `targets` are globs over the names below the component
    that says it: of linears, or of what holds them; the others have no adapter. `apply: false` opts a linear out.

    A linear with an adapter is frozen, and so is all else below the component, unless `freeze_others` is false; what opts out
    counts as that else (null), unless it says otherwise itself. With `freeze_base: false` the linear trains beside its adapters.
    With `trains: false` the adapters are frozen, and nothing else is by them.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    apply: bool = True
    freeze_others: bool | None = None
    trains: bool = True
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    fit: bool = False
    freeze_base: bool = True

    def within(self, outer: LoraSpec | None) -> LoraSpec | None:
        """What it comes to inside of another; without one there is nothing to opt out of."""
        if self.apply or self.freeze_others is not None:
            return self
        return None if outer is None else outer.model_copy(update={"apply": False})

    def at(self, name: str) -> LoraSpec:
        """What it comes to for something of this name below the component that says it: what is no target opts out."""
        is_target = any(is_matched(name.removesuffix(".weight"), glob) for glob in self.targets)
        return self if is_target else self.model_copy(update={"apply": False})

    def rank_at(self, d_in: int, d_out: int) -> int:
        """The rank of the adapter of a linear of these sizes."""
        return min(self.rank, max(min(d_in, d_out) // 2, 1)) if self.fit else self.rank

    def tuning(self, rank: int) -> dict[str, Any]:
        """The other options of an adapter of this rank."""
        return {"alpha": self.alpha or rank, "dropout": self.dropout, "rslora": self.rslora}


class OwnFields(Spec):
    """The fields that rack, stack, block, every part of a block, embedding, head and `parameters` accept alike.

    `lr_scale` multiplies the learning rate of the parameters below it, along the path from the rack down; 0 freezes them: they
    have no gradient. Of the others, what is said nearest to a parameter holds: `weight_decay` instead of the training's, which
    norms, biases and other vectors have only where it is said so; `init`, how the weights of linears start (by a glob: whatever
    it names); `lora`, their adapters.
    """

    lr_scale: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    init: INITS.field() = None  # type: ignore[valid-type]
    lora: LoraSpec | None = None

    @field_validator("init")
    @classmethod
    def _check_init(cls, init: Part | None) -> Part | None:
        """Its constructor is the one place where its rules are written."""
        if init is not None:
            INITS.build(init, n_blocks=1)
        return init

    def below(self, outer: OwnFields) -> Self:
        """The same with what is said around it, as far as that is not said here."""
        inherited = [name for name in ("weight_decay", "init", "lora", "bias") if getattr(self, name, 0) is None]
        update = {name: getattr(outer, name, None) for name in inherited}
        return self.model_copy(update={**update, "lr_scale": self.lr_scale * outer.lr_scale})


class GlobFields(OwnFields):
    """What a glob may say of the parameters and linears that it matches; `bias`: whether linears have one."""

    bias: bool | None = None


Globs = OrderedDict[str, GlobFields]
"""Fields by globs over names below a component (`query`, `*.gate`, `query.bias`): parameters, or modules with all in them."""


class ParameterFields(OwnFields):
    """The fields of a component: its own, and by `parameters` those of single linears and weights below it.

    A glob says more than the components around what it matches; an inner one more than an outer one, and of several in one
    component the last.
    """

    parameters: OrderedDict[str, GlobFields] = Field(default_factory=OrderedDict)


class ModelPart(ParameterFields, Part):
    """A part of a rack. `bias` is short for what every linear in it has; `kernel`, where there is one, says how it is run."""

    short_forms: ClassVar[tuple[str, ...]] = ("bias",)
    outside_fingerprint: ClassVar[tuple[str, ...]] = ("kernel",)

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand `bias`, unless it is an option of the kind's own."""
        del problems
        globs = raw.get("parameters") or {}
        if (
            "bias" not in raw
            or "bias" in cls.model_fields
            or not isinstance(globs, dict)
            or not isinstance(globs.get("*", {}), dict)
        ):
            return raw
        rest = {key: value for key, value in raw.items() if key not in ("bias", "parameters")}
        if "*" in globs:
            return {**rest, "parameters": {**globs, "*": {**globs["*"], "bias": raw["bias"]}}}
        return {**rest, "parameters": {"*": {"bias": raw["bias"]}, **globs}}


def learning_rate_scales(model: nn.Module) -> dict[str, float]:
    """The `lr_scale` of every parameter by name, as `build` left it; 0 is a frozen one."""
    return {name: getattr(parameter, "lr_scale", 1.0) for name, parameter in model.named_parameters()}


def is_matched(name: str, glob: str) -> bool:
    """Whether a glob names a parameter, or a module that it is in."""
    steps = name.split(".")
    return any(fnmatchcase(".".join(steps[:length]), glob) for length in range(1, len(steps) + 1))
