"""Errors a user can cause, told all at once: where, what, and what would be right."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Never

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from configs.limits import LARGEST_INTEGER, LONGEST_ECHO, LONGEST_LINE, MOST_PROBLEMS, shortened

Location = tuple[int | str, ...]


class ConfigError(ValueError):
    """Bad input; the text is ready to be printed, one problem a line. Command lines exit with status 2 on it."""


class Problems:
    """Collects the problems of one spec so that all are reported, each at its own path."""

    def __init__(self) -> None:
        self._details: list[InitErrorDetails] = []

    def add(self, location: Location, message: str, value: Any = None) -> None:
        """Note one problem; `location` is relative to the spec being validated. A place below it that is wrong says more."""
        is_told_below = any(detail["loc"][: len(location)] == location != detail["loc"] for detail in self._details if location)
        if is_told_below or len(self._details) > MOST_PROBLEMS:
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
    if len(name) > LONGEST_ECHO:
        return None
    by_spelling = {other.replace("-", "_"): other for other in sorted(known)}
    found = difflib.get_close_matches(name.replace("-", "_"), by_spelling, n=1)
    return by_spelling[found[0]] if found else None


def known_names(name: str, known: Iterable[str]) -> str:
    """The second half of an unknown-name message: the nearest name, and all there are."""
    names = sorted(known)
    nearest = nearest_name(name, names)
    hint = "" if nearest is None else f"did you mean '{nearest}'? "
    return f"{hint}Known: {', '.join(names) or 'none'}"


def with_article(noun: str) -> str:
    """`a mixer`, `an embedding`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def raise_unknown(noun: str, name: str, known: Iterable[str]) -> Never:
    """Raise for a name that is not in a registry."""
    raise ConfigError(f"unknown {noun} '{shortened(name)}'; {known_names(name, known)}")


def yaml_path(location: Location) -> str:
    """`("stacks", 0, "block")` as `stacks[0].block`."""
    text = ""
    for part in (shortened(part) if isinstance(part, str) else part for part in location):
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


_SINGLE = ("int_type", "float_type", "string_type", "bool_type", "literal_error")
"""Pydantic's words for one value that is not what is expected."""


def message_of(line: Any) -> str:
    """One pydantic error line in our words: the rule and the offending value."""
    if line["type"] == "rule":
        return str(line["msg"])
    if line["type"] == "missing":
        return "required, but not given"
    message = _EXPECTED.get(line["type"], str(line["msg"])).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    value = line["input"]
    if isinstance(value, list | tuple) and line["type"] in _SINGLE:
        return f"{message}: one value is expected, not a list" + (f": write {value[0]}" if len(value) == 1 else "")
    if line["type"] == "tuple_type" and isinstance(value, int | float | str):
        shown = shortened(str(value))
        return f"{message}: write [{shown}] (got {shown})"
    is_endless = isinstance(value, int) and abs(value) > LARGEST_INTEGER  # its digits would take minutes, or be refused
    if is_endless or isinstance(value, dict | list | tuple):
        return message
    shown = shortened(value) if isinstance(value, str) else value  # the repr of a text may be ten times as long
    return f"{message} (got {shown!r})"


def config_error(source: str, error: ValidationError) -> ConfigError:
    """All problems of one file or command line as one message, a line each."""
    lines = [f"{source}: {yaml_path(line['loc'])}: {message_of(line)}" for line in error.errors(include_url=False)]
    return ConfigError(told_lines(source, list(dict.fromkeys(lines))))


def told_lines(source: str, lines: list[str]) -> str:
    """Problems, a line each, as many as a person reads."""
    told = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..." for line in lines[:MOST_PROBLEMS]]
    return "\n".join([*told, *([f"{source}: more problems follow from there on"] if len(lines) > MOST_PROBLEMS else [])])
