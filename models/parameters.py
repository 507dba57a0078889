"""Parameter fields: what a spec may say about the parameters of a component, and of everything below it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import filter as matching_names
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import nn

from configs import Spec
from configs.registry import Part


class ParameterFields(Spec):
    """The fields that rack, stack, block and every part of a block accept alike.

    `lr_scale` multiplies the learning rate of the parameters below it, along the path from the rack down; 0 freezes them: they
    have no gradient. Fields that say nothing are left out of a saved spec.
    """

    lr_scale: Annotated[float, Field(ge=0)] = 1.0

    def below(self, outer: ParameterFields) -> Self:
        """The same component with what is said of it here and around it."""
        return self.model_copy(update={"lr_scale": self.lr_scale * outer.lr_scale})

    @model_serializer(mode="wrap")
    def _leave_out_what_says_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        silent = {name for name, field in ParameterFields.model_fields.items() if getattr(self, name) == field.default}
        return {name: value for name, value in handler(self).items() if name not in silent}


class ModelPart(ParameterFields, Part):
    """A part of a rack."""


Globs = Mapping[str, ParameterFields]
"""Fields for the parameters, by their names in the whole rack, that a glob matches; `*` matches dots too."""


def learning_rate_scales(model: nn.Module) -> dict[str, float]:
    """The `lr_scale` of every parameter by name, as `build` left it; 0 is a frozen one."""
    return {name: getattr(parameter, "lr_scale", 1.0) for name, parameter in model.named_parameters()}


def carry_globs(globs: Globs, old: Iterable[str], new: Iterable[str], rename: Callable[[str], str]) -> dict[str, ParameterFields]:
    """Globs over the `old` names that say of the `new` ones what was said of them under their old name.

    A glob that comes to the same is kept; another becomes the names that it stood for, and none if they are gone.
    """
    old, new = list(old), set(new)
    carried: dict[str, ParameterFields] = {}
    for glob, fields in globs.items():
        meant = {rename(name) for name in matching_names(old, glob)} & new
        is_same = meant == set(matching_names(new, glob))
        for key in [glob] if is_same and meant else sorted(meant):
            carried[key] = fields.below(carried[key]) if key in carried else fields
    return carried
