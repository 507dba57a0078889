"""Which kernel runs an op: `reference`, one by name, or the first that can."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from models.linears.dtypes import working_dtype
from models.ops.kernels.kernel import OTHER_CASES, Kernel, unsuited
from models.ops.kernels.package import Package, load_package
from models.ops.kernels.table import OPS
from models.ops.precision import rounds_to_tf32
from models.ops.transforms import is_transformed

ROUNDS = "it rounds float32 to TF32, and torch does not (torch.backends.cuda.matmul.fp32_precision)"


def run_kernel(op: str, name: str, *tensors: Any, **options: Any) -> Tensor:
    """The op of the arguments by the kernel `name`: what its reference gives, up to rounding.

    `auto` is the first kernel that can be imported and takes these arguments on this device, and no less exactly than torch
    would; without one it is the reference. What keeps it from a kernel that is installed is a warning, once. A kernel asked
    for by name runs or is a ValueError that says why not. On the meta device all of them are the reference.
    """
    entry = OPS[op]
    if name == "reference" or tensors[0].is_meta:
        return entry.reference(*tensors, **options)
    if name != "auto":
        kernel = find_kernel(op, name)
        if problem := obstacle(kernel, tensors, options):
            raise ValueError(f"kernel = {name} cannot run {op}: {problem} (auto takes what can)")
    elif (chosen := _first_that_can(op, tensors, options)) is None:
        return entry.reference(*tensors, **options)
    else:
        kernel = chosen
    function = load_package(kernel.package, kernel.function)
    assert not isinstance(function, str)  # that was an obstacle
    return kernel.call(function, *tensors, **options)


def check_kernel(op: str, name: str) -> None:
    """Refuse a name that is no kernel of the op, and one that is not installed; but not that on the meta device.

    There a configuration is looked at that may be meant for another machine.
    """
    if name in ("auto", "reference"):
        return
    kernel = find_kernel(op, name)
    if not torch.empty(0).is_meta and (missing := kernel.package.missing()):
        raise ValueError(f"kernel = {name}: {missing} (or kernel = auto, which takes what is there)")


def find_kernel(op: str, name: str) -> Kernel:
    """The kernel of an op by name; a ValueError with the known ones if there is none."""
    for kernel in OPS[op].kernels:
        if kernel.name == name:
            return kernel
    known = OPS[op].names()
    nearest = get_close_matches(name.replace("_", "-"), known, n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise ValueError(f"kernel = '{name}' is none of {op}: {hint}Known: {', '.join(known)}")


def obstacle(kernel: Kernel, tensors: tuple[Any, ...], options: Mapping[str, Any]) -> str | None:
    """What keeps the kernel from running on these arguments; None if nothing does."""
    function = load_package(kernel.package, kernel.function)
    if isinstance(function, str):
        return function
    if not is_on_cuda(tensors[0]):
        return f"it needs a CUDA device, and these are on {tensors[0].device.type}"
    if is_transformed():
        return "it does not run under torch.func transforms, such as the vmap of packed training"
    return unsuited(kernel, compute_capability(tensors[0].device)) or kernel.misfit(*tensors, **options)


def is_on_cuda(tensor: Tensor) -> bool:
    """Whether kernels may run on it."""
    return tensor.is_cuda


@cache
def compute_capability(device: torch.device | None = None) -> int:
    """The major compute capability of an Nvidia GPU, by default the current one; 0 of AMD's, which are numbered on their own."""
    return 0 if torch.version.hip else torch.cuda.get_device_capability(device)[0]


def _first_that_can(op: str, tensors: tuple[Any, ...], options: Mapping[str, Any]) -> Kernel | None:
    if not is_on_cuda(tensors[0]):
        return None
    is_exact = working_dtype(tensors[0]) == torch.float32 and not rounds_to_tf32()
    chosen, passed = None, []
    for kernel in OPS[op].kernels:
        problem = ROUNDS if kernel.rounds_float32 and is_exact else obstacle(kernel, tensors, options)
        if problem is None:
            chosen = kernel
            break
        if problem not in OTHER_CASES:
            passed.append((kernel.package, problem))
    if passed:
        tell(op, "the reference" if chosen is None else chosen.name, tuple(passed))
    return chosen


@cache
def tell(op: str, name: str, passed: tuple[tuple[Package, str], ...]) -> None:
    """Warn of what kept `auto` from packages that are installed: once in a process for the same reasons."""
    reasons = [f"not {package.name}: {problem}" for package, problem in passed if package.version() is not None]
    if reasons:
        warn(f"kernel = auto runs {op} by {name}, {'; '.join(reasons)} (python -m search kernels lists them all)", stacklevel=4)
