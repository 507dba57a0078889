"""Registry: kinds found by module name, and the spec of each read off its constructor."""

import importlib
import inspect
import pkgutil
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, SerializeAsAny, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from configs.constructor import constructor_options
from configs.errors import ConfigError, known_names, raise_unknown, with_article
from configs.limits import shortened
from configs.spec import Spec

PART_OF = "part of"
"""In a JSON Schema: any kind of the registry with this noun. The kinds are filled in when a schema is printed, not on import."""


class Part(Spec):
    """A component picked by `kind`; its other fields are the keyword arguments of the class behind it."""

    kind: str

    def options(self) -> dict[str, Any]:
        """The constructor's keyword arguments, without what the rack hands down."""
        common = {name for base in type(self).__mro__[1:] if issubclass(base, Part) for name in base.model_fields}
        return {name: getattr(self, name) for name in type(self).model_fields if name not in common}


class Registry(Mapping[str, type]):
    """The classes in the modules of a package: `registry["gated_delta_net"]` is `GatedDeltaNet` in `gated_delta_net.py`.

    A new file is a new kind; nothing is listed anywhere. A folder in the package is none: it holds what kinds share. Hyphens and
    underscores are the same in a name. `handed_down` are the constructor arguments that whoever builds the part supplies; the
    others are the part's options, written in its spec. `named_parts` is the constructor argument, if any, that takes parts of
    this same registry by name, in an order that counts. `also` are modules outside the package that are kinds too. `base` has
    the fields of every part, whatever its constructor.
    """

    __eq__ = object.__eq__  # a registry is itself, not its contents
    __hash__ = object.__hash__

    def __init__(
        self,
        package: str,
        noun: str,
        handed_down: tuple[str, ...] = (),
        *,
        named_parts: str | None = None,
        also: tuple[str, ...] = (),
        base: type[Part] = Part,
    ) -> None:
        self.package = package
        self.noun = noun
        self.handed_down = handed_down
        self.named_parts = named_parts
        self.base = base
        self._also = {module.rpartition(".")[2]: module for module in also}

    @property
    def _kinds(self) -> tuple[str, ...]:
        folders = importlib.import_module(self.package).__path__
        return _modules(tuple((folder, Path(folder).stat().st_mtime_ns) for folder in folders), tuple(self._also))

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __contains__(self, kind: object) -> bool:
        """Whether there is a file by this name: a name never leads out of the package, whatever has been imported below it."""
        if not isinstance(kind, str) or "." in kind:
            return False
        name = kind.replace("-", "_")
        module = sys.modules.get(f"{self.package}.{name}")
        return name in self._kinds if module is None else not hasattr(module, "__path__")

    def __getitem__(self, kind: str) -> type:
        if kind not in self:
            raise_unknown(self.noun, kind, self)
        name = kind.replace("-", "_")
        path = self._also.get(name, f"{self.package}.{name}")
        try:
            module = importlib.import_module(path)
        except (ImportError, SyntaxError, NameError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path}: this {self.noun} cannot be imported: {error}") from error
        spelling = name.replace("_", "")
        for title, item in vars(module).items():
            if isinstance(item, type) and title.lower() == spelling:
                return item
        expected = "".join(word.capitalize() for word in name.split("_"))
        raise ConfigError(f"{module.__file__}: {with_article(self.noun)} by this name must define a class {expected}")

    def part(self, value: Any) -> Part:
        """Validate `{kind: ..., options}` (or a bare kind) against the constructor of that kind."""
        if isinstance(value, Part):
            value = value.to_dict()
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise PydanticCustomError(
                "rule", "{text}", {"text": f"{with_article(self.noun)} needs a kind; {known_names('', self)}"}
            )
        if value["kind"] not in self:
            text = f"unknown {self.noun} '{shortened(value['kind'])}'; {known_names(value['kind'], self)}"
            raise PydanticCustomError("rule", "{text}", {"text": text})
        kind = value["kind"].replace("-", "_")
        return self.spec_of(kind).model_validate({**value, "kind": kind})

    def spec_of(self, kind: str) -> type[Part]:
        """What describes parts of a kind."""
        return _part_spec(self, self[kind], kind)

    def field(self) -> Any:
        """The annotation of a spec field that holds a part of this registry, or null where the field's default may be."""
        validator = PlainValidator(lambda value: None if value is None else self.part(value))
        return Annotated[SerializeAsAny[Part] | None, validator, WithJsonSchema({PART_OF: self.noun})]

    def build(self, part: Part, **handed_down: Any) -> Any:
        """Construct the component; of what is handed down it gets what its constructor names."""
        component = self[part.kind]
        names = _parameters(component)
        options = part.options()
        if self.named_parts in options:
            named = options[self.named_parts].items()
            options[self.named_parts] = {name: inner and self.build(inner, **handed_down) for name, inner in named}
        return component(**options, **{name: value for name, value in handed_down.items() if name in names})


@cache
def _parameters(component: type) -> frozenset[str]:
    return frozenset(inspect.signature(component).parameters)


@cache
def _modules(folders: tuple[tuple[str, int], ...], also: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds in some folders as they are since the times given: every check of a name would read them anew."""
    modules = pkgutil.iter_modules(folder for folder, _ in folders)
    return tuple(sorted([*also, *(module.name for module in modules if not module.ispkg)]))


@cache
def _part_spec(registry: Registry, component: type, kind: str) -> type[Part]:
    fields: dict[str, Any] = {"kind": (Literal[kind], kind)}
    taken = frozenset([*registry.base.model_fields, *dir(registry.base)])
    for name, annotation, default in constructor_options(component, registry.handed_down, registry.named_parts, taken):
        named = OrderedDict[str, registry.field()] if name == registry.named_parts else annotation  # type: ignore[misc]
        fields[name] = (named, default)
    return create_model(f"{component.__name__}Spec", __base__=registry.base, **fields)
