"""Kernels of the recurrences with a matrix for a state: flash-linear-attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.linears.dtypes import working_dtype
from models.ops.kernels.kernel import FLOATS, Kernel, wrong_dtype
from models.ops.kernels.package import FLA

SMALLEST_HEAD = 16
"""A tensor core multiplies no smaller matrices."""


def recurrence(
    function: str,
    *names: str,
    prepare: Callable[..., tuple[Tensor, ...]] = lambda *tensors: tensors,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    largest: int | None = None,
    wrong_triton: tuple[str, str] | None = None,
    **fixed: Any,
) -> Kernel:
    """The kernel `function` of an op whose tensors go by `names` there: the upper-case ones in half precision, if there is any.

    They are [batch, n_heads, time, ...] here and [batch, time, n_heads, ...] there, but [n_heads, ...] where there is no time;
    `prepare` makes theirs of ours. `largest` is the largest size of a head's keys, `wrong_triton` as `Kernel` has it, `fixed` are
    further arguments. Our queries come scaled: scale is 1.
    """

    def call(function: Callable[..., Any], *tensors: Tensor) -> Tensor:
        dtype = working_dtype(tensors[0])
        given = {
            name.lower(): (tensor.transpose(1, 2) if tensor.ndim > 2 else tensor).to(dtype if name.isupper() else torch.float32)
            for name, tensor in zip(names, prepare(*tensors), strict=True)
        }
        mixed: Tensor = function(**given, scale=1.0, **fixed)[0]
        return mixed.transpose(1, 2).float()

    def misfit(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> str | None:
        del key, others
        sizes = query.shape[-1], value.shape[-1]
        if min(sizes) < SMALLEST_HEAD or (largest is not None and sizes[0] > largest):
            return f"{limits}, not {sizes[0]} and {sizes[1]}"
        return wrong_dtype(working_dtype(query), dtypes)

    limits = f"sizes of keys and values of a head must be at least {SMALLEST_HEAD}"
    limits += f", of keys at most {largest}" if largest is not None else ""
    needs = "heads from 16" + (f" to {largest}" if largest else "") + ("" if torch.float32 in dtypes else ", bfloat16 or float16")
    return Kernel(FLA, f"fla.ops.{function}", call, misfit, needs, rounds_float32=True, wrong_triton=wrong_triton)


def removal_as_product(*tensors: Tensor) -> tuple[Tensor, ...]:
    """RWKV-7's removal and rate as the two factors of what is added to the decay: S_t = (diag(w_t) + b_t^T a_t) S_{t-1} + ..."""
    *others, removal, rate = tensors
    return *others, -removal, rate * removal
