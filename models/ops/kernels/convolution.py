"""The kernel of the short causal convolution: causal-conv1d."""

from collections.abc import Callable

from torch import Tensor

from models.ops.kernels.kernel import FLOATS, Kernel, wrong_dtype
from models.ops.kernels.package import CAUSAL_CONV1D


def _convolve(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool) -> Tensor:
    """[batch, channels, time] there, as a view: with channels the contiguous axis it wants every stride a multiple of 8."""
    if any(stride % 8 for stride in x.stride()[:2]) or x.stride(2) != 1:
        x = x.contiguous()
    return function(x.transpose(1, 2), weight, bias, activation="silu" if silu else None).transpose(1, 2)


def _misfit(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool) -> str | None:
    del bias, silu
    channels, width = weight.shape
    if not 2 <= width <= 4 or channels % 8:
        return f"it is for widths 2 to 4 and a multiple of 8 channels, not {width} and {channels}"
    return wrong_dtype(x.dtype, FLOATS)


CONVOLVE = Kernel(
    CAUSAL_CONV1D, "causal_conv1d:causal_conv1d_fn", _convolve, _misfit, needs="widths 2 to 4, channels a multiple of 8"
)
