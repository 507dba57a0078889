"""Reads the options of a part off the constructor of its class; what is wrong with one is a line that names file and argument."""

import inspect
from collections.abc import Iterator
from inspect import Parameter
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from configs.errors import ConfigError


def constructor_options(
    component: type, handed_down: tuple[str, ...], named_parts: str | None, taken: frozenset[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default (`...` if there is none) of each argument that a configuration sets.

    Args:
        component: the class.
        handed_down: arguments that whoever builds the part supplies.
        named_parts: the argument, if any, that takes parts by name; its type is the registry's matter.
        taken: what a part of any kind has, keys and methods, which no argument can be called.

    Raises:
        ConfigError: for an argument that no configuration could set: without a name or a type, of a type that plain values
            cannot be checked against, or with a default of another type.
    """
    try:
        parameters = inspect.signature(component, eval_str=True).parameters
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ConfigError(f"{_place(component)}: the types of its constructor cannot be read: {error}") from None
    for name, parameter in parameters.items():
        if name not in handed_down:
            if name != named_parts and (problem := _problem(parameter, taken)):
                raise ConfigError(f"{_place(component)}: argument '{name}' {problem}")
            yield name, parameter.annotation, ... if parameter.default is parameter.empty else parameter.default


def _place(component: type) -> str:
    return f"{inspect.getfile(component)}: class {component.__name__}"


def _problem(parameter: Parameter, taken: frozenset[str]) -> str | None:
    if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD, Parameter.POSITIONAL_ONLY):
        return "is no option by name: give each option an argument of its own, with a type"
    if parameter.annotation is parameter.empty:
        return f"has no type, which is what configurations are checked against: write {parameter.name}: int, or what it is"
    if parameter.name.startswith("_") or parameter.name in taken:
        return "is called what no option can be: keys and methods of every part, and names with _ in front, are taken"
    try:
        adapter = TypeAdapter(parameter.annotation)
        if parameter.default is not parameter.empty:
            adapter.validate_python(parameter.default, strict=True)
    except ValidationError:
        return f"has the default {parameter.default!r}, which is not of its type {parameter.annotation!r}"
    except (PydanticUserError, PydanticUndefinedAnnotation, TypeError):  # the last: a constraint that is of another type
        return f"has the type {parameter.annotation!r}: an option is a number, text, bool, None, Literal, or a list of these"
    return None
