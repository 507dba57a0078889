"""Command-line options of the job `mad`: --preset, --tasks, --layers, --racks."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs import ConfigError
from configs.calls import parse_call
from configs.errors import nearest_name, yaml_path
from configs.load import parse_override
from models.spec.short_forms import layer
from search.jobs.mad.racks import architecture_name

RACKS = Path(__file__).parents[2] / "configs" / "racks"


def from_here(path: Path) -> Path:
    """The same path, relative to the working directory if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def architectures(layers: Sequence[str], racks: Sequence[str]) -> dict[str, Any]:
    """What `--layers` and `--racks` stand for, by name."""
    named: dict[str, Any] = {"-".join(layers): {"layers": layers}} if layers else {}
    missing = []
    for rack in racks:
        try:
            name, path = architecture_name(rack), Path(parse_call(rack)[0])
        except ConfigError as error:
            raise ConfigError(f"--racks: {error}") from None
        if name in named:
            raise ConfigError(f"--racks: two architectures are called '{name}'")
        if not path.exists():
            missing.append(f"--racks: {path}: there is no such file{_hint_at_file(path)}")
        named[name] = rack
    if missing:
        raise ConfigError("\n".join(missing))
    return named


def _hint_at_file(path: Path) -> str:
    known = {other.stem: other for folder in (RACKS, path.parent) for other in sorted(folder.glob("*.yaml"))}
    nearest = nearest_name(path.stem, known)
    return "" if nearest is None else f"; did you mean '{from_here(known[nearest])}'?"


def blame(
    error: ConfigError,
    source: str,
    *,
    layers: Sequence[str],
    racks: Sequence[str],
    tasks: Sequence[str],
    overrides: Sequence[str],
) -> ConfigError:
    """The problems of a file that options are laid over, each told of what it comes from: the file, or one of them."""
    options = {re.compile(place): option for place, option in _places(layers, racks, tasks, overrides)}
    lines = []
    for line in str(error).splitlines():
        rest = line.removeprefix(f"{source}: ")
        found = next(((option, match.end()) for place, option in options.items() if (match := place.match(rest))), None)
        told = line if found is None else f"{found[0]}: {rest[found[1] :].lstrip('.: ')}"
        lines.append(told + _hint_at_layer(rest, layers, overrides))
    return ConfigError("\n".join(lines))


def _places(
    layers: Sequence[str], racks: Sequence[str], tasks: Sequence[str], overrides: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Patterns of places in the file that are really an option's, and the option; what is matched is not told."""

    def at(*location: int | str) -> str:
        return re.escape(yaml_path(location))

    for override in overrides:
        yield rf"(?={at(*parse_override(override)[0])}[:.\[])", "command line"
    for index in range(len(layers)):
        yield rf"{at('architectures', '-'.join(layers), 'layers', index)}(?=[:.\[])", f"--layers: layer {index + 1}"
    if layers:
        yield rf"{at('architectures', '-'.join(layers))}(?=[:.\[])", "--layers"
    for name in map(architecture_name, racks):
        yield rf"{at('architectures', name)}(?=:)", "--racks"  # the message names the file
        yield rf"{at('architectures', name)}(?=[.\[])", f"--racks: {name}"
    for task in tasks:
        yield rf"{at('tasks', task)}(?=:)", "--tasks"  # what lies below is the file's


def _hint_at_layer(problem: str, layers: Sequence[str], overrides: Sequence[str]) -> str:
    """For an unknown key that a layer would know: `n_heads=4` beside it, not in parentheses."""
    key = problem.partition(": unknown key")[0]
    override = next((text for text in overrides if text.startswith(f"{key}=")), None)
    for text in layers if override else ():
        try:
            registry, part = layer(text)
        except ValueError:
            continue
        if key in registry.spec_of(part["kind"].replace("-", "_")).model_fields:
            return f'; of a layer it stands in parentheses: "{parse_call(text)[0]}({override})"'
    return ""
