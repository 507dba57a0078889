"""What `precision: auto` is on a CPU, for a whole run: measured once on parts of its model, and kept in the run's spec."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from configs import Spec
from configs.records import DamagedError, read_json
from models import RackSpec
from search.profiling.rack_parts import RackPart, sublayers_of
from search.runs.report import Say
from search.runs.run_folder import SPEC
from search.training.devices import autocast, computes_in, hardware, resolve_device
from search.training.spec import TrainPrecision, TrainSpec

S = TypeVar("S", bound=Spec)
FIELDS = ("precision", "scoring_precision")
LEAST_GAIN = 1.2
"""Times faster than float32 that bf16 has to be to be taken."""

LEAST_PARAMETERS = 1_000_000
"""Of the blocks; smaller ones gain little or nothing, for casts take as long as products, and noise would decide."""

N_COUNTED = 2
ROW_PARAMETERS = 400_000_000
"""Positions times parameters that are measured: 0.2 s or so, at 100 GFLOP/s."""

LEAST_POSITIONS = 64
"""That are measured together: of fewer, as of a step of decoding, products take less time than the casts of their weights."""

WIDTH = 1024
"""Of the one product that stands for a model whose parts are too large to be measured: nearly all of its time is in such."""


class Gain(NamedTuple):
    """How many times faster than in float32 one thread is in bf16."""

    training: float
    scoring: float


def settled(spec: S, out: Path, place: str, rack: RackSpec, say: Say) -> S:
    """The spec with what `auto` is in its TrainSpec at `place` (`train`, `distil.train`).

    It is what the folder's spec says, if there is one: a run goes on in the precision that it began in, on any processor. Else,
    if it computes on a CPU, bf16 is taken for what it makes faster by `LEAST_GAIN`, in a measurement of some tenths of a second.
    What is left `auto` is float32 there; workers with GPUs, which this process need not have, take bf16 in any case.
    """
    names = place.split(".")
    train = _inner(spec, names)
    open_fields = [name for name, said in zip(FIELDS, (train.precision, train.scores_in), strict=True) if said == "auto"]
    if not open_fields:
        return spec
    if (out / SPEC).exists():
        with suppress(DamagedError, KeyError, TypeError):  # whoever opens the folder says so
            kept = read_json(out / SPEC)
            for name in names:
                kept = kept[name]
            return _replaced(spec, names, {name: kept[name] for name in open_fields})
        return spec
    if resolve_device(train.device).type != "cpu" or not _has_bf16() or (gain := gain_of_bf16(rack)) is None:
        return spec
    chosen = {name: "bf16" if times >= LEAST_GAIN else "auto" for name, times in zip(FIELDS, gain, strict=True)}
    spec = _replaced(spec, names, {name: chosen[name] for name in open_fields})
    train, device = _inner(spec, names), torch.device("cpu")
    say(
        f"precision: training {computes_in(device, train.precision)}, scores {computes_in(device, train.scores_in)}; "
        f"on {hardware(device)} bf16 is {gain.training:.1f} and {gain.scoring:.1f} times as fast as fp32"
    )
    return spec


def _has_bf16() -> bool:
    """Whether torch multiplies in bfloat16 here; builds without oneDNN, as some for Macs are, do not know the op."""
    has_op = torch.backends.mkldnn.is_available()
    return has_op and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch has no other word for it


def gain_of_bf16(rack: RackSpec) -> Gain | None:
    """Measured on the rack's own parts, where it has choices on the main ones, or on one product if they are too large for that.

    None if they are too small for it to matter.
    """
    mains = iter(slot.main for slot in rack.slots())
    n_times: Counter[str] = Counter()
    found: dict[str, RackPart] = {}
    for half in sublayers_of(rack):
        part = half.part if half.choices is None else half.choices[next(mains)]
        if part is not None:
            n_times[part.key] += 1
            found[part.key] = part
    with torch.device("meta"):
        shapes = [part.build(rack) for part in found.values()]
    n_parameters = sum(parameter.numel() for module in shapes for parameter in module.parameters())
    if n_parameters < LEAST_PARAMETERS:
        return None
    n_positions = min(256, ROW_PARAMETERS // n_parameters)
    with torch.random.fork_rng(devices=[]):
        if n_positions >= LEAST_POSITIONS:
            modules = {key: part.build(rack) for key, part in found.items()}
            x = torch.randn(1, min(n_positions, rack.max_length or n_positions), rack.d_model)
        else:
            modules, n_times = {"product": nn.Linear(WIDTH, WIDTH)}, Counter({"product": 1})
            x = torch.randn(1, 256, WIDTH)
        seconds: dict[tuple[str, TrainPrecision], float] = defaultdict(float)
        for key, module in modules.items():
            for use, work in (("training", _step), ("scoring", _pass)):
                for precision, each in _seconds(work, module, x).items():
                    seconds[use, precision] += n_times[key] * each
    return Gain(*(seconds[use, "fp32"] / seconds[use, "bf16"] for use in Gain._fields))


def _seconds(work: Callable[[Any, Tensor], object], module: Any, x: Tensor) -> dict[TrainPrecision, float]:
    """CPU seconds of a call in each precision: the least of some rounds in turn, after one that is not counted."""
    taken: dict[TrainPrecision, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(1 + N_COUNTED):
        for precision, times in taken.items():
            started = time.process_time()
            with autocast(x.device, precision):
                work(module, x)
            times.append(time.process_time() - started)
    return {precision: min(times[1:]) for precision, times in taken.items()}


@torch.no_grad()
def _pass(module: Any, x: Tensor) -> object:
    return module(x)


def _step(module: Any, x: Tensor) -> None:
    module(x.requires_grad_()).float().square().mean().backward()


def _inner(spec: Spec, names: list[str]) -> TrainSpec:
    for name in names:
        spec = getattr(spec, name)
    assert isinstance(spec, TrainSpec)
    return spec


def _replaced(spec: S, names: list[str], changes: dict[str, Any]) -> S:
    if names:
        changes = {names[0]: _replaced(getattr(spec, names[0]), names[1:], changes)}
    return spec.model_copy(update=changes)
