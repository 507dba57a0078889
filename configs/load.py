"""Reads a YAML file, applies `key=value` overrides at any depth, and validates the whole."""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from configs.errors import ConfigError, Location, config_error, known_names, yaml_path
from configs.spec import SPEC_VERSION, Spec

SpecT = TypeVar("SpecT", bound=Spec)


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 numbers (5e-4 is a float, 1:3 is text) and no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML's own message is about this
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where a float needs a dot (5e-4 would be text), and 1:3 is a number to the base of sixty.
_FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?|\.(?:inf|Inf|nan|NaN))$")
_INTEGER = re.compile(r"^[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)$")
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not readable as YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not readable as YAML: {error}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it cannot be read, has duplicate keys or is no mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text") from None
    tree = _parse(text, str(path))
    _check_mapping(tree, str(path))
    return dict(tree)


def _check_mapping(tree: Any, source: str) -> None:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: a mapping is expected at the top level, found {type(tree).__name__}")


_STEP = re.compile(r"""(?:^|(?<=.)\.)(?P<key>[^.\[\]=]+)|\[(?P<index>-?\d+)\]|\["(?P<quoted>[^"]+)"\]""")


def parse_override(text: str) -> tuple[list[int | str], Any]:
    """`stacks[1].block.mixer.n_heads=8` as its path and value; keys with odd characters are quoted: `layers["-2:"]`."""
    steps: list[int | str] = []
    position = 0
    while match := _STEP.match(text, position):
        steps.append(int(match["index"]) if match["index"] is not None else match["key"] or match["quoted"])
        position = match.end()
    if not steps or text[position : position + 1] != "=":
        raise ConfigError(f"override '{text}': expected key=value, for example train.lr=1e-3 or stacks[1].n_blocks=4")
    return steps, _parse(text[position + 1 :], f"override '{text}'")


def apply_override(tree: Any, text: str) -> None:
    """Set one `key=value` in the raw tree; mappings on the way are made, list items must exist."""
    steps, value = parse_override(text)
    for number, step in enumerate(steps):
        is_last = number == len(steps) - 1
        if isinstance(step, int):
            if not isinstance(tree, list) or not -len(tree) <= step < len(tree):
                found = f"a list of {len(tree)}" if isinstance(tree, list) else f"a {type(tree).__name__}"
                raise ConfigError(f"override '{text}': [{step}] does not exist, there is {found}")
        elif not isinstance(tree, dict):
            raise ConfigError(f"override '{text}': '{step}' is no key, there is a {type(tree).__name__}")
        if is_last:
            tree[step] = value
        elif isinstance(step, str):
            if tree.get(step) is None:
                tree[step] = {}
            tree = tree[step]
        else:
            tree = tree[step]


_OF_THE_FILE = ("spec_version", "checksum")
"""Keys that a saved spec has at its top, and that are none of its own."""


def validate(spec_class: type[SpecT], tree: Mapping[str, Any], source: str) -> SpecT:
    """The spec that a raw or saved tree describes; ConfigError with all its problems, each at its path.

    At the top, and there alone, a tree may say the version of the format that it was saved in; no other one is read.
    """
    _check_mapping(tree, source)
    check_version(tree, source)
    try:
        return spec_class.model_validate({key: value for key, value in tree.items() if key not in _OF_THE_FILE})
    except ValidationError as error:
        raise config_error(source, error) from None


def validate_saved(spec_class: type[SpecT], tree: Mapping[str, Any], source: str) -> SpecT:
    """The same of what a run has left: a tree that says no version is of the first."""
    return validate(spec_class, {"spec_version": 1, **tree}, source)


def check_version(tree: Mapping[str, Any], source: str) -> None:
    """ConfigError if a tree says that it was saved in another version of the format."""
    version = tree.get("spec_version", SPEC_VERSION)
    if version != SPEC_VERSION:
        text = f"saved in version {version} of the format, but this mixrack reads version {SPEC_VERSION} alone"
        raise ConfigError(f"{source}: {text}: run it again into another folder, or use the mixrack that wrote it")


def check_keys(spec_class: type[Spec], tree: Mapping[str, Any], source: str) -> None:
    """ConfigError with every unknown key of a spec, and of the specs that are fields of it: no part is looked at, or imported."""
    check_version(tree, source)
    unknown = _unknown_keys(spec_class, {key: value for key, value in tree.items() if key not in _OF_THE_FILE})
    lines = [f"{source}: {yaml_path(location)}: {message}" for location, message in unknown]
    if lines:
        raise ConfigError("\n".join(lines))


def _unknown_keys(spec_class: type[Spec], tree: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    known = [*spec_class.model_fields, *spec_class.short_forms]
    for key, value in tree.items():
        if key not in known:
            yield (str(key),), f"unknown key '{key}'; {known_names(str(key), known)}"
            continue
        inner = spec_class.model_fields[key].annotation if key in spec_class.model_fields else None
        if isinstance(inner, type) and issubclass(inner, Spec) and isinstance(value, dict):
            yield from (((key, *location), message) for location, message in _unknown_keys(inner, value))


def load_saved(spec_class: type[SpecT], path: str | Path) -> SpecT:
    """The spec in a file that a run has left; ConfigError as in `load`."""
    return validate_saved(spec_class, read_yaml(path), str(path))


def load(spec_class: type[SpecT], path: str | Path, overrides: Sequence[str] = ()) -> SpecT:
    """Read, override and validate a YAML file.

    Args:
        spec_class: what the file describes.
        path: the YAML file.
        overrides: `key=value` texts applied before validation, in order.

    Raises:
        ConfigError: with every problem of the file at once.
    """
    tree = read_yaml(path)
    for text in overrides:
        apply_override(tree, text)
    return validate(spec_class, tree, str(path))
