"""Reads a YAML file, applies `key=value` overrides at any depth, and validates the whole."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from configs.errors import ConfigError, Location, config_error, known_names, nearest_name, told_lines, yaml_path
from configs.limits import MOST_JSON_BYTES, MOST_LEVELS, MOST_PROBLEMS, MOST_YAML_BYTES, shortened
from configs.parse_json import parse_json
from configs.parse_yaml import parse_yaml
from configs.spec import SPEC_VERSION, Spec

SpecT = TypeVar("SpecT", bound=Spec)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, or in the JSON of one that ends so; ConfigError if it cannot be read or breaks a limit."""
    path = Path(path)
    is_json = path.suffix == ".json"
    most = MOST_JSON_BYTES if is_json else MOST_YAML_BYTES
    try:
        with path.open("rb") as file:  # no more than may be there: some files have no end
            content = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{shortened(str(path))}: cannot be read: {error.strerror}{_hint_at_file(path, error)}") from None
    if len(content) > most:  # not to be left to the parsers, which count characters: what is there may be cut off
        raise ConfigError(f"{path}: more than {most:,} bytes of {'JSON' if is_json else 'YAML'}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text") from None
    tree = (parse_json if is_json else parse_yaml)(text, str(path))
    _check_mapping(tree, str(path))
    return dict(tree)


def _hint_at_file(path: Path, error: OSError) -> str:
    """The file beside it that was probably meant."""
    if not isinstance(error, FileNotFoundError):
        return ""
    nearest = nearest_name(path.stem, [other.stem for other in path.parent.glob("*.yaml")])
    return "" if nearest is None else f"; did you mean '{path.with_name(nearest)}.yaml'?"


def _check_mapping(tree: Any, source: str) -> None:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: a mapping is expected at the top level, found {type(tree).__name__}")


_STEP = re.compile(r"""(?:^|(?<=.)\.)(?P<key>[^.\[\]=]+)|\[(?P<index>-?\d{1,9})\]|\["(?P<quoted>[^"]+)"\]""")


def parse_override(text: str) -> tuple[list[int | str], Any]:
    """`stacks[1].block.mixer.n_heads=8` as its path and value; keys with odd characters are quoted: `layers["-2:"]`."""
    steps: list[int | str] = []
    position = 0
    while match := _STEP.match(text, position):
        steps.append(int(match["index"]) if match["index"] is not None else match["key"] or match["quoted"])
        position = match.end()
    told = f"override '{shortened(text)}'"
    if not steps or text[position : position + 1] != "=":
        raise ConfigError(f"{told}: expected key=value, for example train.lr=1e-3 or stacks[1].n_blocks=4")
    if len(steps) > MOST_LEVELS:
        raise ConfigError(f"{told}: a path of {len(steps):,} keys; there are at most {MOST_LEVELS} levels")
    return steps, parse_yaml(text[position + 1 :], told)


def apply_override(tree: Any, text: str) -> None:
    """Set one `key=value` in the raw tree; mappings on the way are made, list items must exist."""
    (steps, value), text = parse_override(text), shortened(text)
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
        text = f"saved in version {shortened(str(version))} of the format, but this mixrack reads version {SPEC_VERSION} alone"
        raise ConfigError(f"{source}: {text}: run it again into another folder, or use the mixrack that wrote it")


def check_keys(spec_class: type[Spec], tree: Mapping[str, Any], source: str) -> None:
    """ConfigError with every unknown key of a spec, and of the specs that are fields of it: no part is looked at, or imported."""
    check_version(tree, source)
    unknown = _unknown_keys(spec_class, {key: value for key, value in tree.items() if key not in _OF_THE_FILE})
    lines = [f"{source}: {yaml_path(location)}: {message}" for location, message in islice(unknown, MOST_PROBLEMS + 1)]
    if lines:
        raise ConfigError(told_lines(source, lines))


def _unknown_keys(spec_class: type[Spec], tree: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    known = [*spec_class.model_fields, *spec_class.short_forms]
    for key, value in tree.items():
        if key not in known:
            yield (str(key),), f"unknown key '{shortened(str(key))}'; {known_names(str(key), known)}"
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
