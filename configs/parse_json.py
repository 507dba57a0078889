"""Reads JSON text that a run has left as plain values, within the same limits as YAML: nothing in it is trusted."""

import json
import re
from typing import Any

from configs.errors import ConfigError
from configs.limits import LARGEST_INTEGER, MOST_JSON_BYTES, MOST_LEVELS, shortened

_ODD_CHARACTERS = re.compile("[\0\ud800-\udfff]")


def parse_json(text: str, source: str) -> Any:
    """The plain values of a JSON text; ConfigError that names the source, the place, and the rule or limit that it breaks."""
    if len(text) > MOST_JSON_BYTES:
        raise ConfigError(f"{source}: more than {MOST_JSON_BYTES:,} bytes of JSON: no run leaves that much")
    try:
        tree = json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        told = f"{source}, line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{told}: not readable as JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a key that is given twice, thousands of digits; thousands of levels
        raise ConfigError(f"{source}: not readable as JSON: {shortened(str(error))}") from None
    if problem := _problem_in(tree):
        raise ConfigError(f"{source}: not readable as JSON: {problem}")
    return tree


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key '{shortened(key)}' is given twice")
        found[key] = value
    return found


def _problem_in(tree: Any) -> str | None:
    """What of it breaks a limit, level by level."""
    level = [tree]
    for _ in range(MOST_LEVELS + 1):
        for value in level:
            if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                return f"an integer that 64 bits do not hold: {shortened(str(value))}"
            if isinstance(value, str) and (odd := _ODD_CHARACTERS.search(value)):
                return f"text with the character {odd[0]!a}, which no file or terminal takes"
        keys = [key for value in level if isinstance(value, dict) for key in value]
        below = [inner for value in level if isinstance(value, dict | list) for inner in _inside(value)]
        level = [*keys, *below]
        if not level:
            return None
    return f"more than {MOST_LEVELS} levels of lists and mappings, one in the other"


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
