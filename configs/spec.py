"""Spec: frozen, closed data with a fingerprint; the base of everything a user can set."""

import hashlib
import json
from collections import OrderedDict
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import CoreSchema

from configs.errors import Problems, known_names, message_of, nearest_name
from configs.limits import MOST_PROBLEMS, shortened
from configs.numbers import with_plain_numbers

SPEC_VERSION = 4
"""Of the format of saved specs: raise it when keys change. No other version is read; the first one did not say so."""


class Spec(BaseModel):
    """Data that describes a run or a part of one.

    Frozen; unknown keys are errors that suggest the nearest key; equal content gives an equal `fingerprint()`, which names
    caches, checkpoints and results. The order of a mapping is no content, unless its field is an OrderedDict.

    `short_forms` are keys that a subclass accepts and expands before validation; they are known to error messages and gone from a
    saved spec. The fields `outside_fingerprint` say how something is run, not what it is, so that the same work may go on
    elsewhere.
    """

    short_forms: ClassVar[tuple[str, ...]] = ()
    outside_fingerprint: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Turn short forms into what they stand for; what is wrong with them is added to `problems`, and validation goes on."""
        del problems
        return raw

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As pydantic makes it; fields that are numbers refuse booleans, and integers of more than 64 bits."""
        return with_plain_numbers(handler(source))

    @model_validator(mode="wrap")
    @classmethod
    def _validate_all(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        problems = Problems()
        if isinstance(data, dict):
            data = cls.expand_short_forms(data, problems)
        try:
            spec = handler(data)
        except ValidationError as error:
            keys = [*cls.model_fields, *cls.short_forms]
            lines = error.errors(include_url=False)[: MOST_PROBLEMS + 1]
            own = [line for line in lines if len(line["loc"]) == 1]
            meant = {nearest_name(str(line["loc"][0]), keys) for line in own if line["type"] == "extra_forbidden"}
            for line in lines:
                message = message_of(line)
                if line in own and line["type"] == "missing" and line["loc"][0] in meant:
                    continue  # it is there, misspelt
                if line in own and line["type"] == "extra_forbidden":
                    key = str(line["loc"][0])
                    message = f"unknown key '{shortened(key)}'; {known_names(key, keys)}"
                problems.add(line["loc"], message, line["input"])
        problems.raise_if_any(cls.__name__)
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every default filled in; `type(spec)(**spec.to_dict()) == spec`."""
        return self.model_dump(mode="json")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As plain values: classes of parts are made at run time, where no name finds them. What may change is as it is."""
        if not self.model_config.get("frozen"):
            return super().__reduce_ex__(protocol)
        return type(self).model_validate, (self.to_dict(),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Itself, unless it may change."""
        return self if self.model_config.get("frozen") else super().__deepcopy__(memo)

    def saved(self) -> dict[str, Any]:
        """`to_dict()` for a file of its own, with the version of the format; `configs.load` reads it."""
        return {"spec_version": SPEC_VERSION, **self.to_dict()}

    def content(self) -> dict[str, Any]:
        """What the spec is, whoever runs it, and how: plain values without the `outside_fingerprint`, at any depth."""
        content: dict[str, Any] = _content(self, self.to_dict())
        return content

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that depend on the content alone."""
        text = json.dumps([type(self).__name__, self.content()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __hash__(self) -> int:
        return hash((type(self).__name__, json.dumps(self.to_dict(), sort_keys=True)))


def _content(value: Any, dumped: Any) -> Any:
    """A dumped value without what says how the specs in it are run; a mapping whose order counts as a list of its items."""
    if isinstance(value, Spec):
        kept = {name: inner for name, inner in dumped.items() if name not in value.outside_fingerprint}
        return {name: _content(getattr(value, name), inner) for name, inner in kept.items()}
    if isinstance(value, dict):
        items = [[key, _content(inner, kept)] for inner, (key, kept) in zip(value.values(), dumped.items(), strict=True)]
        return items if isinstance(value, OrderedDict) else dict(items)
    if isinstance(value, list | tuple):
        return [_content(inner, kept) for inner, kept in zip(value, dumped, strict=True)]
    return dumped
