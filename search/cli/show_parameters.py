"""What `show --parameters` prints: the optimizer's groups, and what holds for every parameter."""

import re
from collections.abc import Iterator
from itertools import groupby

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models import RackSpec
from models.assembly.assemble import build
from models.assembly.initialise import EMBEDDING_STD
from models.assembly.parameter_settings import ParameterSettings
from models.assembly.quantise import stored_numbers
from search.training.optimizer import own_decay, parameter_groups

PLACE = re.compile(r"\.blocks\.(\d+)\.")


def print_parameters(console: Console, spec: RackSpec, *, decays_all: bool) -> None:
    """The groups, then a row for each parameter; equal ones of consecutive blocks are one row.

    `decays_all`: weight decay is on vectors too, as in MAD's mode `mad`.
    """
    with torch.device("meta"):
        rack = build(spec)
    groups = _table("optimizer groups", "learning rate", "weight decay", "tensors", "parameters")
    for (scale, decay), parameters in parameter_groups(rack, decays_all=decays_all).items():
        n_parameters = sum(parameter.numel() for parameter in parameters.values())
        groups.add_row(f"x {scale:g}", _decay(decay), f"{len(parameters):,}", f"{n_parameters:,}")
    frozen = [parameter for parameter in rack.parameters() if not parameter.requires_grad]
    if frozen:
        groups.add_row("frozen", "", f"{len(frozen):,}", f"{sum(parameter.numel() for parameter in frozen):,}")
    if n_stored := stored_numbers(rack):
        groups.add_row("stored", "", "", f"{n_stored:,}")
    console.print(groups)
    table = _table("parameters", "name", "shape", "start", "learning rate", "weight decay")
    for name, *cells in _rows(ParameterSettings(rack, spec), decays_all=decays_all):
        table.add_row(escape(name), *map(escape, cells))
    console.print(table)


def _rows(settings: ParameterSettings, *, decays_all: bool) -> Iterator[tuple[str, ...]]:
    rows = [_row(name, settings, decays_all=decays_all) for name, _ in settings.rack.named_parameters()]
    seen: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    for row in rows:
        found = PLACE.search(row[0])
        key = (PLACE.sub(".blocks.*.", row[0]), *row[1:])
        seen.setdefault(key, []).append((int(found[1]) if found else 0, row[0]))
    for key, places in seen.items():
        yield from ((_name(run), *key[1:]) for run in _runs(places))


def _runs(places: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Places of consecutive blocks together."""
    for _, run in groupby(enumerate(places), key=lambda item: item[1][0] - item[0]):
        yield [place for _, place in run]


def _name(run: list[tuple[int, str]]) -> str:
    (first, name), (last, _) = run[0], run[-1]
    return name if first == last else PLACE.sub(f".blocks.{first}-{last}.", name)


def _row(name: str, settings: ParameterSettings, *, decays_all: bool) -> tuple[str, ...]:
    parameter, init = settings.rack.get_parameter(name), settings.init_of(name)
    start = "as its layer starts it"
    if init is not None:
        start = f"{init.kind}({', '.join(f'{key}={value}' for key, value in init.options().items())})"
    elif name == "embedding.weight":
        start = f"normal(std={EMBEDDING_STD})"
    rate = f"x {getattr(parameter, 'lr_scale', 1.0):g}" if parameter.requires_grad else "frozen"
    decay = _decay(own_decay(parameter, decays_all=decays_all)) if parameter.requires_grad else ""
    return name, " x ".join(map(str, parameter.shape)), start, rate, decay


def _decay(weight_decay: float | None) -> str:
    return "the training's" if weight_decay is None else f"{weight_decay:g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
