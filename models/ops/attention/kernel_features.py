"""Feature maps phi with phi(q) phi(k) = kernel(q, k), exactly or on average over random frequencies."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.unit import unit

# What positive kernels add up to at least, for each key: just above zero.
LEAST_POSITIVE = 1e-30


def draw_frequencies(kernel_type: str, kernel_dim: int, d_head: int, *, seed: int) -> Tensor | None:
    """The frequencies [n, d_head] of a kernel's random features, the same for the same seed on any device; elu has none.

    Gaussian ones are orthogonal by blocks of d_head (Choromanski et al. 2020, arXiv 2009.14794, section 2.4).
    """
    if kernel_type == "elu":
        return None
    device, n_frequencies = torch.empty(0).device, kernel_dim if kernel_type == "favor" else kernel_dim // 2
    if device.type == "meta":  # where a size is asked for, numbers would take what they take
        return torch.empty(n_frequencies, d_head)
    # The generator is the CPU's, and so are the numbers, also where the default device is another.
    options = {"generator": torch.Generator().manual_seed(seed), "device": "cpu", "dtype": torch.float64}
    if kernel_type == "rff_laplacian":
        # The tails are so heavy that the outermost one of n + 1 would be noise: what x is rounded by turns such waves at random.
        share = n_frequencies / (n_frequencies + 1)
        drawn = (share * math.pi * (torch.rand(n_frequencies, d_head, **options) - 0.5)).tan()  # type: ignore[call-overload]
    else:
        n_blocks = -(-n_frequencies // d_head)
        basis, triangle = torch.linalg.qr(torch.randn(n_blocks, d_head, d_head, **options))  # type: ignore[call-overload]
        # Bases are uniform only up to the signs that the factorisation prefers, whose mean would stay as an error at any number
        # of features (Mezzadri 2007, arXiv math-ph/0609050).
        basis = basis * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None]
        lengths = torch.randn(n_frequencies, d_head, **options).norm(dim=-1, keepdim=True)  # type: ignore[call-overload]
        drawn = basis.flatten(0, 1)[:n_frequencies] * lengths
    return drawn.to(torch.get_default_dtype()).to(device)


def scaled_frequencies(frequencies: Tensor, log_scale: Tensor, kernel_type: str) -> Tensor:
    """The frequencies of waves [n_heads, n, d_head] whose kernels are those of `frequencies` to the power exp(log_scale).

    They are squared distances or absolute ones, so that by `log_scale` [n_heads] both get as sharp, and are at least
    exp(-2 exp(log_scale)): where unit vectors are farthest apart.
    """
    power = 0.5 if kernel_type == "rff_gaussian" else 1.0
    return (power * log_scale).exp()[:, None, None] * frequencies


def least_sum(count: Tensor, log_scale: Tensor | None, kernel_dim: int) -> Tensor:
    """What the kernels of `count` [..., time, 1] keys add up to, at least: [..., n_heads, time, 1], or without scales as `count`.

    Of waves it is the sum of what each is at least, but no less than the error of the estimates, by which the sum may come close
    to zero or below: its mean square is at most 1 / kernel_dim for a key, and for many as of so many independent ones.
    """
    if log_scale is None:
        return LEAST_POSITIVE * count
    count = count.to(log_scale.dtype)
    farthest = (-2 * log_scale.exp()).exp()[:, None, None]
    return (farthest * count).maximum((count / kernel_dim).sqrt())


@in_float32
def kernel_features(x: Tensor, frequencies: Tensor | None, kernel_type: str) -> tuple[Tensor, Tensor]:
    """[..., d_head] -> features [..., kernel_dim] and peak [..., 1] with phi(x) = exp(peak) features.

    Frequencies are [n, d_head] or [n_heads, n, d_head].

    elu: elu(x) + 1. favor: exp(w x - |x|^2 / 2) for x / d_head^(1/4), whose kernel is on average exp(q k / sqrt(d_head)), that of
    softmax attention; its largest is taken out as the peak, or it would overflow. rff_gaussian and rff_laplacian: cos and sin of
    w x for x of length 1, whose kernels are on average exp(-|q - k|_2^2 / 2) and, by x / sqrt(d_head), exp(-|q - k|_1).
    """
    d_head = x.shape[-1]
    if frequencies is None:
        return F.elu(x) + 1, torch.zeros_like(x[..., :1])
    frequencies = frequencies.to(x.dtype)
    if kernel_type == "favor":
        x = x * d_head**-0.25
        exponents = x @ frequencies.mT - x.square().sum(-1, keepdim=True) / 2
        peak = exponents.detach().amax(-1, keepdim=True)
        return (exponents - peak).exp() / math.sqrt(frequencies.shape[-2]), peak
    x = unit(x) / (math.sqrt(d_head) if kernel_type == "rff_laplacian" else 1.0)
    angles = x @ frequencies.mT
    return torch.cat((angles.cos(), angles.sin()), dim=-1) / math.sqrt(frequencies.shape[-2]), torch.zeros_like(x[..., :1])
