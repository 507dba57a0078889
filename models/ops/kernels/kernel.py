"""What a kernel is: a foreign function, and how an op's arguments fit it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from models.ops.kernels.package import FLEX, Package, is_within

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (*HALVES, torch.float32)

HOPPER = 9
"""Major compute capability of the H100 and H200."""

WINDOWS_ONLY = "it is for windows shorter than the sequence"
NO_WINDOW = "it knows no windows"
OTHER_CASES = (WINDOWS_ONLY, NO_WINDOW)
"""Misfits that are no loss: another kernel of the op, or torch's own, is meant for these arguments."""


@dataclass(frozen=True)
class Kernel:
    """One fast form of an op.

    `call(function, *tensors, **options)` gives what the op's reference gives for the same arguments, through `function`
    ("module:name"). `misfit(*tensors, **options)` says what about these keeps them from it, None if nothing does; `needs` is
    the same rule in words, of any. With `rounds_float32` it multiplies float32 as TF32, whatever torch's own switch says.
    It runs on GPUs of the major compute capabilities `runs_on`, on any if None; on Hopper not with Triton from the first of
    `wrong_triton` to before the second, which compiles it to wrong numbers there.
    """

    package: Package
    function: str
    call: Callable[..., Tensor]
    misfit: Callable[..., str | None]
    needs: str
    rounds_float32: bool = False
    runs_on: tuple[int, ...] | None = None
    wrong_triton: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """What configurations call it."""
        return self.package.name


@cache
def unsuited(kernel: Kernel, capability: int) -> str | None:
    """What keeps a kernel from a GPU of a major compute capability, with the Triton that is installed; None if nothing does."""
    if kernel.runs_on is not None and capability not in kernel.runs_on:
        return f"it is for GPUs of compute capability {' or '.join(map(str, kernel.runs_on))}, not {capability}"
    if kernel.wrong_triton is None or capability != HOPPER or (triton := FLEX.version()) is None:
        return None
    first, fixed = kernel.wrong_triton
    if is_within(triton, first, fixed):
        return f"Triton {triton} compiles it to wrong gradients on this GPU, as all do from {first} to before {fixed}"
    return None


@dataclass(frozen=True)
class Op:
    """The reference of an op, which any machine runs, and its kernels in order of preference."""

    reference: Callable[..., Tensor]
    kernels: tuple[Kernel, ...]

    def names(self) -> tuple[str, ...]:
        """What `kernel:` may say."""
        return ("auto", "reference", *(kernel.name for kernel in self.kernels))


def wrong_dtype(dtype: torch.dtype, known: tuple[torch.dtype, ...]) -> str | None:
    """That the precision is none of the known ones."""
    if dtype in known:
        return None
    *others, last, given = (str(each).removeprefix("torch.") for each in (*known, dtype))
    return f"it computes in {', '.join(others)} or {last}, not {given}"
