"""Causal convolution with a filter as long as the sequence."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.precision import in_float32


@in_float32
def long_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """y_t = sum_{s <= t} taps_{t - s} x_s for every channel, by FFT: [batch, time, channels], [channels, time] -> x's shape."""
    time = x.shape[1]
    size = fft_size(time)
    spectrum = torch.fft.rfft(x.mT, n=size) * torch.fft.rfft(taps, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :time].mT


def fft_size(time: int) -> int:
    """The power of two at which the end of the convolution does not wrap around onto its beginning."""
    return 1 << (2 * time - 1).bit_length()


def long_convolution_flops(time: int) -> int:
    """Forward operations for one channel: real transforms of input, filter and output, 2.5 n log2 n each, and the product."""
    size = fft_size(time)
    return 15 * size * (size.bit_length() - 1) // 2 + 6 * (size // 2 + 1)


@in_float32
def outer_product_convolution(read: Tensor, write: Tensor, value: Tensor, taps: Tensor) -> Tensor:
    """y_t = read_t (taps * [write value^T])_t: each head convolves d_head x d_head products with one filter.

    Shapes: read, write and value [batch, n_heads, time, d_head], taps [n_heads, time] -> value's. Computed as
    sum_s taps_{t - s} (read_t write_s) value_s, attention whose weights are the filter: d_head times fewer operations than the
    convolutions up to some thousand positions.
    """
    time = value.shape[-2]
    # Row t of the windows is taps_{t - s} with s counted from the end, so time is reversed on that side.
    weights = F.pad(taps, (time - 1, 0)).unfold(-1, time, 1)
    return (weights * (read @ write.flip(-2).mT)) @ value.flip(-2)


def outer_product_convolution_flops(time: int, d_head: int) -> int:
    """Forward operations for one head."""
    return 4 * time**2 * d_head
