"""Retention: linear attention that every head forgets at its own fixed pace (Sun et al. 2023, arXiv 2307.08621), in chunks."""

from functools import partial

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunk_states import decayed_before_each
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks
from models.ops.recurrences.gated_linear_attention import gated_linear_attention_flops

# The same products; decays are none.
retention_flops = partial(gated_linear_attention_flops, chunk=CHUNK)


@in_float32
def retention(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """y_t = q_t S_t with S_t = exp(log_decay) S_{t-1} + k_t v_t^T.

    Shapes: query and key [..., n_heads, time, d_key], value [..., n_heads, time, d_value], log_decay [n_heads], not positive
    -> [..., n_heads, time, d_value].

    `decayed_linear_attention` at one pace for all positions says the same, but makes the decays of every chunk anew, where one
    table a head does: forward it takes 1.7 times as long for heads of 16 (CPU), and as long for large ones.
    """
    time = query.shape[-2]
    chunk = min(CHUNK, time)
    query, key, value = (in_chunks(part, chunk) for part in (query, key, value))
    positions = torch.arange(chunk, device=query.device)
    passed = positions[:, None] - positions
    pace = log_decay[:, None, None, None]
    # Masked before the exponential: a decay is never run backwards.
    decay = (pace * passed).masked_fill(passed < 0, -torch.inf).exp()
    mixed = (decay * (query @ key.mT)) @ value
    if time > CHUNK:
        places = positions[:, None]
        added = (key * (pace * (chunk - 1 - places)).exp()).mT @ value
        states = decayed_before_each(added, (chunk * pace).exp().expand(*added.shape[:-2], 1, 1))
        mixed = mixed + (query * (pace * (places + 1)).exp()) @ states
    return join_chunks(mixed, time)
