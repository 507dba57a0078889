"""The command `kernels`: which fast kernels there are, which are installed, what `auto` picks here and why."""

import argparse
import inspect
from collections.abc import Mapping, Sequence

import torch
from rich.table import Table

from configs import ConfigError
from models import MIXERS
from models.ops.kernels.dispatch import compute_capability
from models.ops.kernels.kernel import Kernel, unsuited
from models.ops.kernels.package import Package, load_package
from models.ops.kernels.table import OPS
from models.ops.precision import rounds_to_tf32
from search.runs.console import make_console


def run_kernels(arguments: argparse.Namespace, overrides: Sequence[str], backend: object) -> int:
    """Print the table, and how to install what is missing."""
    del arguments, backend
    if overrides:
        raise ConfigError(f"kernels: takes no settings, got {' '.join(overrides)}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    problems = {(name, kernel): problem(kernel, device) for name, op in OPS.items() for kernel in op.kernels}
    table = Table(title=f"kernels: torch {torch.__version__}, {device or 'no CUDA device'}", title_justify="left")
    for name in ("op", "mixers", "kernel", "installed", "for", "auto picks here"):
        table.add_column(name)
    for name, op in OPS.items():
        ready = [] if device is None else [kernel.name for kernel in op.kernels if problems[name, kernel] is None]
        picks = f"{' or '.join(ready)} where it fits, else reference" if ready else "reference"
        for index, kernel in enumerate(op.kernels):
            shown = (name, ", ".join(mixers_of(name)), picks) if index == 0 else ("", "", "")
            table.add_row(*shown[:2], kernel.name, state(kernel, problems[name, kernel]), kernel.needs, shown[2])
    console = make_console()
    console.print(table)
    for line in reasons(device, problems):
        console.print(line, markup=False)
    return 0


def problem(kernel: Kernel, device: str | None) -> str | None:
    """What keeps `auto` from the kernel here, whatever the arguments; None if nothing does."""
    if lack := kernel.package.lack():
        return lack
    if isinstance(found := load_package(kernel.package, kernel.function), str):
        return found
    return None if device is None else unsuited(kernel, compute_capability())


def state(kernel: Kernel, reason: str | None) -> str:
    """The installed version, and whether it is used."""
    version = kernel.package.version()
    if version is None:
        return "missing"
    return version if reason is None else f"{version}, not used"


def mixers_of(op: str) -> list[str]:
    """The kinds of mixers that run the op, by default or with the option that asks for it."""
    if op == "causal_convolution":
        return [kind for kind in MIXERS if "d_conv" in inspect.signature(MIXERS[kind]).parameters]
    return [kind for kind in MIXERS if getattr(MIXERS[kind], "kernel_op", None) == op]


def reasons(device: str | None, problems: Mapping[tuple[str, Kernel], str | None]) -> list[str]:
    """Why `auto` picks no more than it does, and the commands that would change it."""
    lines = ["auto is the reference: there is no CUDA device here, and no kernel runs without one."] if device is None else []
    unused: dict[tuple[str, str], list[str]] = {}
    for (op, kernel), reason in problems.items():
        if reason and kernel.package.version() is not None:
            unused.setdefault((kernel.name, reason), []).append(op)
    lines += [f"{name} is not used for {', '.join(ops)}: {reason}" for (name, reason), ops in unused.items()]
    if device is not None and not rounds_to_tf32():
        rounding = sorted({kernel.name for _, kernel in problems if kernel.rounds_float32})
        lines.append(
            f"In float32 auto leaves out what rounds it to TF32 ({', '.join(rounding)}): torch does not "
            "(torch.backends.cuda.matmul.fp32_precision). A kernel asked for by name runs anyway."
        )
    lines.append("No kernel runs under vmap (packed training), on the meta device or in float64: auto is the reference there.")
    missing: list[Package] = list(dict.fromkeys(kernel.package for _, kernel in problems if kernel.package.lack()))
    if missing:
        cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        lines += ["", f"To install what is missing beside this torch ({torch.__version__}, {cuda}):"]
        lines += [f"  {command}" for command in dict.fromkeys(line for package in missing for line in package.install())]
    return lines
