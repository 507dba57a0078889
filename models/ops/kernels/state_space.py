"""Kernels of state-space models: mamba-ssm."""

from collections.abc import Callable

from torch import Tensor

from models.linears.dtypes import working_dtype
from models.ops.kernels.kernel import FLOATS, Kernel, wrong_dtype
from models.ops.kernels.package import MAMBA_SSM

_CHUNK = 256
"""Positions that the kernel of Mamba-2 computes as attention; what its package takes by itself."""


def _scan(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Time is the last axis there, and channels come before states.

    In float32, as everywhere: it is bound by its exponentials, and in half precision the steps would lose most of their range.
    """
    steps, x, write, read, speed = (tensor.float().mT for tensor in tensors)
    return function(x, steps, speed.contiguous(), write, read).mT


def _scan_misfit(steps: Tensor, x: Tensor, write: Tensor, read: Tensor, speed: Tensor) -> str | None:
    del steps, write, read
    if speed.shape[0] > 256:
        return f"d_state must be at most 256, not {speed.shape[0]}"
    return wrong_dtype(x.dtype, FLOATS)


def _duality(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """[batch, time, n_heads, d_head] there."""
    x, steps, speed, write, read = tensors
    dtype = working_dtype(x)
    x, write, read = (part.transpose(1, 2).to(dtype).contiguous() for part in (x, write, read))
    mixed = function(x, steps.float().mT.contiguous(), speed.float(), write, read, chunk_size=_CHUNK)
    return mixed.transpose(1, 2).float()


def _duality_misfit(x: Tensor, steps: Tensor, speed: Tensor, write: Tensor, read: Tensor) -> str | None:
    del steps, speed, read
    d_head, d_state = x.shape[-1], write.shape[-1]
    if d_head < 16 or d_state < 16 or d_head % 8 or d_state % 8 or d_state > 256:
        return f"d_head and d_state must be multiples of 8 from 16, d_state up to 256, not {d_head} and {d_state}"
    return wrong_dtype(working_dtype(x), FLOATS)


SCAN = Kernel(
    MAMBA_SSM, "mamba_ssm.ops.selective_scan_interface:selective_scan_fn", _scan, _scan_misfit, needs="d_state up to 256"
)
DUALITY = Kernel(
    MAMBA_SSM,
    "mamba_ssm.ops.triton.ssd_combined:mamba_chunk_scan_combined",
    _duality,
    _duality_misfit,
    needs="d_head and d_state multiples of 8 from 16, d_state up to 256",
    rounds_float32=True,
)
