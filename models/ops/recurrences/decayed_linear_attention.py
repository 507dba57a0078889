"""Linear attention that every head forgets at a pace of the position's own, in chunks."""

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunk_states import decayed_before_each
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks


@in_float32
def decayed_linear_attention(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """y_t = q_t S_t with S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T.

    Shapes: query and key [batch, n_groups, time, d_key], value [batch, n_heads, time, d_value], log_decay [batch, n_heads, time],
    not positive -> value's; the heads of a group share query and key.

    Within a chunk it is attention with the scores q_t k_s, computed once a group, weighted by the decay from s to t.
    """
    time, n_groups = value.shape[-2], query.shape[-3]
    chunk = min(CHUNK, time)
    value, total = (in_chunks(part, chunk).unflatten(-4, (n_groups, -1)) for part in (value, log_decay[..., None]))
    query, key = (in_chunks(part, chunk)[..., None, :, :, :] for part in (query, key))
    total = total.cumsum(-2)
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=value.device).tril()
    # Differences before the exponential, and never a positive one: nothing to overflow.
    decay = (total - total.mT).masked_fill(~lower, -torch.inf).exp()
    mixed = (decay * (query @ key.mT)) @ value
    if time > CHUNK:
        end = total[..., -1:, :]
        added = key.mT @ ((end - total).exp() * value)
        mixed = mixed + total.exp() * (query @ decayed_before_each(added, end.exp()))
    return join_chunks(mixed.flatten(-5, -4), time)


@in_float32
def decayed_step(memory: Tensor, query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """One position of a recurrence that forgets: the memory decays, is added to, and is read at the query.

    Shapes: memory [..., d_key, d_value], query and key [..., d_key], value [..., d_value], log_decay [..., d_key or 1] -> what is
    read [..., d_value], and the memory.
    """
    memory = log_decay.exp()[..., None] * memory + key[..., None] * value[..., None, :]
    return (query[..., None, :] @ memory)[..., 0, :], memory


def decayed_linear_attention_flops(time: int, d_key: int, d_value: int, *, n_heads: int, n_groups: int) -> int:
    """Forward operations for all heads, padding included."""
    chunk = min(CHUNK, time)
    n_chunks = -(-time // chunk)
    within = 2 * n_chunks * chunk**2 * (n_groups * d_key + n_heads * d_value)
    states = (4 * n_chunks * chunk + 2 * (n_chunks - 1)) * n_heads * d_key * d_value if n_chunks > 1 else 0
    return within + states
