"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467)."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """weight * x / sqrt(mean(x ** 2) + eps) over the last axis, [..., d_model] -> same."""

    def __init__(self, d_model: int, *, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the mean is taken in float32 inside the kernel."""
        # Under autocast x may be bfloat16 while the weight is not: mixed types lose the fused kernel.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
