"""Attention with a kernel for exp(q k): linear in time, as the kernel is a product of features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.decayed_linear_attention import decayed_linear_attention, decayed_linear_attention_flops


@in_float32
def kernel_attention(
    query: Tensor, key: Tensor, peak: Tensor, value: Tensor, *, causal: bool, least: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """y_t = sum_s K_ts v_s / sum_s K_ts with K_ts = query_t key_s e^peak_s, over all s, or the s <= t.

    Shapes: query and key [batch, n_heads, time, kernel_dim], features up to a factor of the position's own; of the keys' the
    logarithm is `peak` [batch, n_heads, time, 1]; value [batch, n_heads, time, d_head] -> value's. `least` [..., time or 1,
    1] is what their sum is at least: an estimate that is below is not believed. `attention_mask` [batch, time] bool is false at
    the keys that are left out; with none to be seen the mean is zero.

    Sums are kept relative to the highest peak so far: where it rises, what was before fades. So nothing overflows, and nothing
    depends on what comes later.
    """
    value = F.pad(value, (0, 1), value=1.0)  # the sum of the kernels, beside that of the values
    if attention_mask is not None:
        peak = peak.masked_fill(~attention_mask[:, None, :, None], -torch.inf)
    highest = peak.cummax(-2).values if causal else peak.amax(-2, keepdim=True)
    before = highest[..., :-1, 0]
    # While nothing is kept there is no peak: sums are zero, and differences of infinities are to be no numbers in them.
    weight = (peak - highest).masked_fill(peak == -torch.inf, -torch.inf).exp()
    if not causal:
        return normalised(query @ ((key * weight).mT @ value), least)
    log_decay = F.pad((before - highest[..., 1:, 0]).masked_fill(before == -torch.inf, 0), (1, 0))
    return normalised(decayed_linear_attention(query, key * weight, value, log_decay), least)


def normalised(sums: Tensor, least: Tensor) -> Tensor:
    """Sums of values and, last, of kernels [..., d_head + 1], these at least `least` -> the weighted mean [..., d_head]."""
    return sums[..., :-1] / sums[..., -1:].maximum(least)


def kernel_attention_flops(time: int, kernel_dim: int, d_head: int, *, n_heads: int, causal: bool) -> int:
    """Forward operations for all heads, without the features'."""
    if not causal:
        return 4 * time * n_heads * kernel_dim * (d_head + 1)
    return decayed_linear_attention_flops(time, kernel_dim, d_head + 1, n_heads=n_heads, n_groups=n_heads)
