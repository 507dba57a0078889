"""Which kernel runs an op: `reference`, one by name, or the first that can."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from models.linears.dtypes import working_dtype
from models.ops.kernels.kernel import Kernel, Op
from models.ops.kernels.package import load_package
from models.ops.kernels.table import OPS


def run_kernel(op: str, name: str, *tensors: Any, **options: Any) -> Tensor:
    """The op of the arguments by the kernel `name`: what its reference gives, up to rounding.

    `auto` is the first kernel that can be imported and takes these arguments on this device, and no less exactly than torch
    would; without one it is the reference. A kernel asked for by name runs or is a ValueError that says why not. On the meta
    device all of them are the reference.
    """
    entry = OPS[op]
    if name == "reference" or tensors[0].is_meta:
        return entry.reference(*tensors, **options)
    if name != "auto":
        kernel = find_kernel(op, name)
        if problem := obstacle(kernel, tensors, options):
            raise ValueError(f"kernel = {name} cannot run {op}: {problem} (auto takes what can)")
    elif (chosen := _first_that_can(entry, tensors, options)) is None:
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
    if torch._C._functorch.maybe_current_level() is not None:  # noqa: SLF001 - there is no public way to ask
        return "it does not run under torch.func transforms, such as the vmap of packed training"
    return kernel.misfit(*tensors, **options)


def is_on_cuda(tensor: Tensor) -> bool:
    """Whether kernels may run on it."""
    return tensor.is_cuda


def _first_that_can(entry: Op, tensors: tuple[Any, ...], options: Mapping[str, Any]) -> Kernel | None:
    if not is_on_cuda(tensors[0]):
        return None
    is_exact = working_dtype(tensors[0]) == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    for kernel in entry.kernels:
        if not (kernel.rounds_float32 and is_exact) and obstacle(kernel, tensors, options) is None:
            return kernel
    return None
