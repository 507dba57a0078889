"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464), in chunks."""

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks
from models.ops.recurrences.corrected_chunks import corrected_chunks, corrected_chunks_flops


@in_float32
def gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, rate: Tensor, log_decay: Tensor) -> Tensor:
    """y_t = q_t S_t with S_t = a_t S_{t-1} + k_t u_t^T, where u_t = rate_t (v_t - a_t k_t S_{t-1}) and a_t = exp(log_decay_t).

    Shapes: query and key [..., time, d_key] (keys of length at most 1), value [..., time, d_value], rate and log_decay
    [..., time], log_decay <= 0 -> [..., time, d_value].

    Within a chunk that starts at S, with g the cumulative log decay, (I + A) U = rate (V - e^g K S) where
    A_ts = rate_t e^(g_t - g_s) k_t k_s for s < t: the UT transform. U is what the chunk writes.
    """
    time = query.shape[-2]
    chunk = min(CHUNK, time)
    query, key, value, rate, log_decay = (
        in_chunks(part, chunk) for part in (query, key, value, rate[..., None], log_decay[..., None])
    )
    total = log_decay.cumsum(-2)
    end = total[..., -1:, :]
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=query.device).tril()
    # Differences before the exponential, and never a positive one: nothing to overflow.
    decay = (total - total.mT).masked_fill(~lower, -torch.inf).exp()
    reach = total.exp()
    # The rows that correct, then those that read: what is scaled here has no channels.
    rows = torch.cat((key, query), dim=-2)
    scores = torch.cat((-rate * decay.tril(-1), decay), dim=-2) * (rows @ key.mT)
    reading = torch.cat((-rate * reach, reach), dim=-2) * rows
    writing = (end - total).exp() * key
    return join_chunks(corrected_chunks(scores, reading, writing, rate * value, end.exp()), time)


@in_float32
def delta_step(
    memory: Tensor, query: Tensor, key: Tensor, value: Tensor, rate: Tensor, *, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One position of a delta rule: the memory decays, is corrected at the key, and is read at the query.

    Shapes: memory [..., d_key, d_value], query and key [..., d_key], value [..., d_value], rate [...], log_decay [..., d_key or
    1] (None: nothing is forgotten) -> what is read [..., d_value], and the memory.
    """
    memory = memory if log_decay is None else log_decay.exp()[..., None] * memory
    missing = value - (key[..., None, :] @ memory)[..., 0, :]
    memory = memory + key[..., None] * (rate[..., None] * missing)[..., None, :]
    return (query[..., None, :] @ memory)[..., 0, :], memory


def gated_delta_rule_flops(time: int, d_key: int, d_value: int, *, chunk: int = CHUNK) -> int:
    """Forward operations for one head, padding included."""
    chunk = min(chunk, time)
    n_chunks = -(-time // chunk)
    return n_chunks * 4 * chunk**2 * d_key + corrected_chunks_flops(n_chunks, chunk, d_key, d_value, columns=chunk)
