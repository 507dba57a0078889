"""What a kernel is: a foreign function, and how an op's arguments fit it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ops.kernels.package import Package

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (*HALVES, torch.float32)


@dataclass(frozen=True)
class Kernel:
    """One fast form of an op.

    `call(function, *tensors, **options)` gives what the op's reference gives for the same arguments, through `function`
    ("module:name"). `misfit(*tensors, **options)` says what about these keeps them from it, None if nothing does; `needs` is
    the same rule in words, of any. With `rounds_float32` it multiplies float32 as TF32, whatever torch's own switch says.
    """

    package: Package
    function: str
    call: Callable[..., Tensor]
    misfit: Callable[..., str | None]
    needs: str
    rounds_float32: bool = False

    @property
    def name(self) -> str:
        """What configurations call it."""
        return self.package.name


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
