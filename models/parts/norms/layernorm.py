"""Layer normalisation (Ba et al. 2016, arXiv 1607.06450)."""

from torch import nn


class LayerNorm(nn.LayerNorm):
    """weight * (x - mean) / sqrt(variance + eps) + bias over the last axis, [..., d_model] -> same."""

    def __init__(self, d_model: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(d_model, eps=eps, bias=bias)
