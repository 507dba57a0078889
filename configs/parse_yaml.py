"""Reads YAML text as plain values: strict keys, YAML 1.2 numbers, and limits that are checked before anything is made of it."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from configs.errors import ConfigError
from configs.limits import LARGEST_INTEGER, MOST_LEVELS, MOST_VALUES, MOST_YAML_BYTES, shortened

# PyYAML follows YAML 1.1, where a float needs a dot (5e-4 would be text), and 1:3 is a number to the base of sixty.
_FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?|\.(?:inf|Inf|nan|NaN))$")
_INTEGER = re.compile(r"^[-+]?(?:0|[1-9][\d_]*|0x_*[\da-fA-F][\da-fA-F_]*|0b_*[01][01_]*)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:yes|no|true|false|on|off)$", re.IGNORECASE)
_ODD_CHARACTERS = re.compile("[\0\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_FORMS = {"int": _INTEGER, "float": re.compile(f"{_FLOAT.pattern}|{_INTEGER.pattern}"), "null": _NULL, "bool": _BOOL}
_KNOWN_TAGS = (*_FORMS, "str", "seq", "map", "merge")
_MOST_DIGITS = 100
"""Of an integer that is made at all; 64 bits have 66 in base two."""


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 numbers (5e-4 is a float, 1:3 is text), dates as text, no duplicate keys, and no more levels than there may be."""

    n_levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.n_levels += 1
        if self.n_levels > MOST_LEVELS + 1:
            raise _problem(self.peek_event(), f"more than {MOST_LEVELS} levels of lists and mappings, one in the other")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.n_levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML's own message is about this
            if key in seen:
                raise _problem(key_node, f"the key '{shortened(str(key))}' is given twice")
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise _problem(key_node, f"a key is text or a whole number, not {key}: text needs quotes there")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.removeprefix(_TAG) not in ("float", "int", "timestamp", "value")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))
_StrictLoader.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))


def parse_yaml(text: str, source: str) -> Any:
    """The plain values of a YAML text; ConfigError that names the source, the place, and the rule or limit that it breaks."""
    if len(text) > MOST_YAML_BYTES:
        raise ConfigError(f"{source}: more than {MOST_YAML_BYTES:,} bytes of YAML: nothing that is configured is that long")
    loader = None
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, 0, {})
        return _unshared(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not readable as YAML: {shortened(str(error.problem))}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: escapes and versions that are no such number
        raise ConfigError(f"{source}: not readable as YAML: {shortened(str(error))}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _unshared(value: Any) -> Any:
    """A copy in which each alias is a value of its own, so that an override of one place changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _problem(place: Any, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=place.start_mark)


def _check(node: yaml.Node, depth: int, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node comes to, and how many levels, with each alias counted as what it stands for."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _problem(node, "an alias stands inside of what it is an alias of")
    else:
        known[id(node)] = None
        found = _measured(node, depth, known)
        known[id(node)] = found
    if depth + found[1] > MOST_LEVELS:
        raise _problem(node, f"more than {MOST_LEVELS} levels of lists and mappings, aliases expanded")
    return found


def _measured(node: yaml.Node, depth: int, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    if node.tag.removeprefix(_TAG) not in _KNOWN_TAGS:
        raise _problem(node, f"the tag '{node.tag}': only text, numbers, true, false, null, lists and mappings are read")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
        return 1, 0
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(each,) for each in node.value]
    if (node.tag == f"{_TAG}map") != isinstance(node, yaml.MappingNode):
        raise _problem(node, f"what stands there is no {node.tag.removeprefix(_TAG)}")
    n_values = n_levels = 0
    for each in (each for pair in pairs for each in pair):
        if depth >= MOST_LEVELS:
            raise _problem(each, f"more than {MOST_LEVELS} levels of lists and mappings, aliases expanded")
        below = _check(each, depth + 1, known)
        n_values, n_levels = n_values + below[0], max(n_levels, below[1])
        if n_values >= MOST_VALUES:
            raise _problem(each, f"more than {MOST_VALUES:,} values, aliases expanded")
    return n_values + 1, n_levels + 1


def _check_scalar(node: yaml.ScalarNode) -> None:
    """Whether it can be made into what its tag says; integers of any length are refused before they are made."""
    text, kind = node.value, node.tag.removeprefix(_TAG)
    form = _FORMS.get(kind)
    if kind in ("seq", "map") or (form is not None and not form.match(text)):
        raise _problem(node, f"'{shortened(text)}' is no {kind}")
    if kind == "str" and (odd := _ODD_CHARACTERS.search(text)):
        raise _problem(node, f"text with the character {odd[0]!a}, which no file or terminal takes")
    if kind == "int" and (len(text) > _MOST_DIGITS or abs(_integer(text)) > LARGEST_INTEGER):
        raise _problem(node, f"an integer of {len(text):,} digits ({text[:20]}...): 64 bits hold up to {LARGEST_INTEGER:,}")


def _integer(text: str) -> int:
    return int(text.replace("_", ""), 0)
