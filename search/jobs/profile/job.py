"""The job `profile`: times every part that a rack of a space may consist of, here and now."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from configs import ConfigError
from models.rack.contracts import Mixer
from search.jobs.backend import Backend
from search.jobs.profile.spec import ProfileSpec
from search.profiling.decoding import state_at
from search.profiling.latency import EMBEDDING, LatencyTable
from search.profiling.rack_parts import RackPart, parts_of
from search.profiling.timing import median_milliseconds
from search.runs.console import make_console
from search.runs.run_folder import run_folder
from search.training.devices import autocast, hardware, reseed, resolve_device


def run(spec: ProfileSpec, out: Path, backend: Backend | None = None) -> int:
    """Measure, print the table and leave it in `latency.json`; the exit status is 0.

    Raises:
        ConfigError: if a mixer has no step form to decode with, or the device is missing.
    """
    del backend  # what is timed is the device of this process
    check_steps(spec)
    device = resolve_device(spec.device)
    with run_folder(out, spec):
        table = measure(spec, device)
        table.save(out / "latency.json")
    print_table(table)
    return 0


def measure(spec: ProfileSpec, device: torch.device) -> LatencyTable:
    """Time the parts one by one; each is built on the device, timed and dropped."""
    parts = {part.key: partial(_part_work, spec, part) for part in parts_of(spec.rack)}
    milliseconds = {}
    on_gpu = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=on_gpu), autocast(device, spec.precision):
        reseed(device, 0)
        for key, make_work in {EMBEDDING: partial(_embedding_work, spec), **parts}.items():
            with torch.device(device):
                work = make_work()
            milliseconds[key] = median_milliseconds(work, device, spec.repeats)
        is_half = torch.is_autocast_enabled(device.type)
    return LatencyTable(
        hardware=hardware(device),
        torch_version=torch.__version__,
        device=device.type,
        precision="bf16" if is_half else "fp32",
        milliseconds=milliseconds,
        d_model=spec.rack.d_model,
        vocab_size=spec.rack.vocab_size,
        max_length=spec.rack.max_length,
        **spec.model_dump(include={"mode", "batch_size", "seq_len"}),
    )


def check_steps(spec: ProfileSpec) -> None:
    """ConfigError naming a mixer that cannot decode, before anything is timed."""
    if spec.mode == "decode":
        for part in parts_of(spec.rack):
            with torch.device("meta"):
                module = part.build(spec.rack)
            if isinstance(module, Mixer) and not module.has_step:
                raise ConfigError(f"mode: decode: the {part.key} has no step form; time mode: prefill, or leave it out")


def _embedding_work(spec: ProfileSpec) -> Callable[[], object]:
    """One call of the embedding, on as many tokens as it would get."""
    return partial(nn.Embedding(spec.rack.vocab_size, spec.rack.d_model).eval(), torch.zeros(_shape(spec), dtype=torch.long))


def _part_work(spec: ProfileSpec, part: RackPart) -> Callable[[], object]:
    """One call of the part, on inputs of the shapes that it would get."""
    module = part.build(spec.rack).eval()
    x = torch.randn(*_shape(spec), spec.rack.d_model)
    if isinstance(module, Mixer) and spec.mode == "decode":
        step = part.in_precision(module.step)
        return partial(step, x[:, 0], state_at(module, step, spec.batch_size, spec.rack.d_model, spec.seq_len))
    return partial(part.in_precision(module), x)


def _shape(spec: ProfileSpec) -> tuple[int, int]:
    return spec.batch_size, spec.seq_len if spec.mode == "prefill" else 1


def print_table(table: LatencyTable) -> None:
    """The parts, the slowest first."""
    what = f"{table.batch_size} x {table.seq_len}" if table.mode == "prefill" else f"{table.batch_size} x 1 after {table.seq_len}"
    title = f"{table.mode} of {what}, {table.precision}, width {table.d_model}, {table.hardware}, torch {table.torch_version}"
    shown = Table(title=escape(title), title_justify="left", title_style="bold")
    shown.add_column("part", overflow="fold")
    shown.add_column("ms", justify="right", no_wrap=True)
    for key, time in sorted(table.milliseconds.items(), key=lambda item: -item[1]):
        shown.add_row(escape(key), f"{time:.3f}")
    make_console().print(shown)
