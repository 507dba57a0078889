"""Softmax attention over all keys, the earlier ones or those of a mask, by torch's fused kernels, also with sinks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, *, causal: bool = False, seen: Tensor | None = None
) -> Tensor:
    """Attention over all keys, the earlier ones, or those `seen` [..., queries, keys]."""
    is_grouped = query.shape[1] != key.shape[1]
    if sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal, enable_gqa=is_grouped)
    # One more channel carries the sinks: they are in the queries, and one in the key of the sink alone, which comes first. The
    # fused kernels know neither sinks nor masks that learn, and want queries, keys and values of one size.
    d_head = query.shape[-1]
    logits = (math.sqrt(d_head) * sinks).to(query.dtype)[:, None, None]
    query = torch.cat((query, logits.expand(*query.shape[:-1], 1)), dim=-1)
    key, value = F.pad(key, (0, 1, 1, 0)), F.pad(value, (0, 1, 1, 0))
    key = key + F.pad(key.new_ones(1, 1), (d_head, 0, 0, key.shape[-2] - 1))
    # The sink has no query, but to be causal all must be as far on as their keys.
    query = F.pad(query, (0, 0, 1, 0)) if causal else query
    seen = None if seen is None else F.pad(seen, (1, 0), value=True)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, is_causal=causal, enable_gqa=is_grouped, scale=1 / math.sqrt(d_head)
    )
    return mixed[..., int(causal) :, :d_head]
