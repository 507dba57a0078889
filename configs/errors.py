"""Errors a user can cause, told all at once: where, what, and what would be right."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Never

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Location = tuple[int | str, ...]


class ConfigError(ValueError):
    """Bad input; the text is ready to be printed, one problem a line. Command lines exit with status 2 on it."""


class Problems:
    """Collects the problems of one spec so that all are reported, each at its own path."""

    def __init__(self) -> None:
        self._details: list[InitErrorDetails] = []

    def add(self, location: Location, message: str, value: Any = None) -> None:
        """Note one problem; `location` is relative to the spec being validated. A place below it that is wrong says more."""
        if any(detail["loc"][: len(location)] == location != detail["loc"] for detail in self._details if location):
            return
        error = PydanticCustomError("rule", "{text}", {"text": message})
        self._details.append(InitErrorDetails(type=error, loc=location, input=value))

    def adopt(self, location: Location, error: ValidationError) -> None:
        """Take over the problems of a part that lies at `location`."""
        for line in error.errors():
            self.add(location + line["loc"], message_of(line), line["input"])

    def raise_if_any(self, title: str) -> None:
        """Raise pydantic's ValidationError over everything noted so far."""
        if self._details:
            raise ValidationError.from_exception_data(title, self._details)


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """What a misspelt name probably meant; hyphens and underscores are the same."""
    by_spelling = {other.replace("-", "_"): other for other in sorted(known)}
    found = difflib.get_close_matches(name.replace("-", "_"), by_spelling, n=1)
    return by_spelling[found[0]] if found else None


def known_names(name: str, known: Iterable[str]) -> str:
    """The second half of an unknown-name message: the nearest name, and all there are."""
    names = sorted(known)
    nearest = nearest_name(name, names)
    hint = "" if nearest is None else f"did you mean '{nearest}'? "
    return f"{hint}Known: {', '.join(names) or 'none'}"


def raise_unknown(noun: str, name: str, known: Iterable[str]) -> Never:
    """Raise for a name that is not in a registry."""
    raise ConfigError(f"unknown {noun} '{name}'; {known_names(name, known)}")


def yaml_path(location: Location) -> str:
    """`("stacks", 0, "block")` as `stacks[0].block`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.startswith("<"):
            continue  # the tag of a union's member, ours and invisible to the user
        elif part.replace("_", "").replace("-", "").isalnum():
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text or "(whole file)"


@contextmanager
def below(*location: int | str) -> Iterator[None]:
    """Errors of a part, whose lines begin with a key, as those of the whole: `files: ...` as `data.task.files: ...`."""
    try:
        yield
    except ConfigError as error:
        place = yaml_path(location)
        raise ConfigError("\n".join(f"{place}.{line}" for line in str(error).splitlines())) from None


# Python's words for what a YAML file has.
_EXPECTED = {
    "model_type": "a mapping is expected",
    "dict_type": "a mapping is expected",
    "ordered_dict_type": "a mapping is expected",
    "tuple_type": "a list is expected",
}


def message_of(line: Any) -> str:
    """One pydantic error line in our words: the rule and the offending value."""
    if line["type"] == "rule":
        return str(line["msg"])
    if line["type"] == "missing":
        return "required, but not given"
    message = _EXPECTED.get(line["type"], str(line["msg"])).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    value = line["input"]
    return message if isinstance(value, dict | list | tuple) else f"{message} (got {value!r})"


def config_error(source: str, error: ValidationError) -> ConfigError:
    """All problems of one file or command line as one message, a line each."""
    lines = [f"{source}: {yaml_path(line['loc'])}: {message_of(line)}" for line in error.errors()]
    return ConfigError("\n".join(dict.fromkeys(lines)))
