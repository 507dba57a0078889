"""What a rack computes, counted from the operations that run: torch's own counter, and what that one does not see."""

import math

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def triangular_solve(matrix, *_, out_shape, **_named):
    """Each right-hand side costs what a product with the triangle costs: n^2 / 2 multiply-adds."""
    return matrix[-1] * math.prod(out_shape)


def real_transform(shape, axes, *_, **_named):
    """Half of a complex transform, which is 5 n log2 n (as FFTW counts its speed)."""
    (axis,) = axes
    return 2.5 * math.prod(shape) * math.log2(shape[axis])


def inverse_real_transform(_shape, axes, *_, out_shape):
    """The same, by the length that comes out."""
    (axis,) = axes
    return 2.5 * math.prod(out_shape) * math.log2(out_shape[axis])


def scaled_addition(_total, first, second, *, out_shape):
    """The taps of short convolutions and the steps of scans: nothing else is written as `addcmul`.

    A tap, and a state that fades before a whole chunk is added to it, is a multiply-add. Where an outer product is added to a
    state, that has been faded by an element-wise product, of which the counter does not know what it is for: one more.
    """
    is_outer_product = min(len(first), len(second)) > 1 and first[-1] == 1 and second[-2] == 1
    return (3 if is_outer_product else 2) * math.prod(out_shape)


def product(*_, out_val, **_named):
    """Spectra are multiplied in a convolution, by four products and two sums; real numbers are element-wise work."""
    return 6 * out_val.numel() if out_val.is_complex() else 0


product._get_raw = True  # the counter's mark of formulas that want tensors, not shapes

UNSEEN = {
    aten.linalg_solve_triangular: triangular_solve,
    aten._fft_r2c: real_transform,
    aten._fft_c2r: inverse_real_transform,
    aten.addcmul: scaled_addition,
    aten.mul: product,
}


def counted(module, *inputs):
    """Floating-point operations of one call; on torch's meta device they are counted without being done."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=UNSEEN) as counter:
        module(*inputs)
    return counter.get_total_flops()
