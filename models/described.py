"""Modules that know their specs."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

from torch import nn

from configs import Spec


class Described(nn.Module):
    """A module that knows its spec, and knows it where it is copied or sent to: classes of specs are made at run time."""

    spec_class: ClassVar[type[Spec]]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value.to_dict() if isinstance(value, Spec) else value for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        specs = {name: self.spec_class.model_validate(state[name]) for name in ("spec", "thawed", "_spec") if name in state}
        super().__setstate__({**state, **specs})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = memo[id(self)] = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            made.__dict__[name] = value if isinstance(value, Spec) else copy.deepcopy(value, memo)
        return made
