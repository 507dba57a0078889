"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464), in chunks."""

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunk_states import corrected_before_each
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks


@in_float32
def gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, rate: Tensor, log_decay: Tensor) -> Tensor:
    """y_t = q_t S_t with S_t = a_t S_{t-1} + k_t u_t^T, where u_t = rate_t (v_t - a_t k_t S_{t-1}) and a_t = exp(log_decay_t).

    Shapes: query and key [..., time, d_key] (keys of length at most 1), value [..., time, d_value], rate and log_decay
    [..., time], log_decay <= 0 -> [..., time, d_value].

    Within a chunk that starts at S, with g the cumulative log decay, (I + A) U = rate (V - e^g K S) where
    A_ts = rate_t e^(g_t - g_s) k_t k_s for s < t: one triangular solve for both right-hand sides (the UT transform).
    """
    time = query.shape[-2]
    chunk = min(CHUNK, time)
    query, key, value, rate, log_decay = (
        in_chunks(part, chunk) for part in (query, key, value, rate[..., None], log_decay[..., None])
    )
    total = log_decay.cumsum(-2)
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=query.device).tril()
    # Differences before the exponential, and never a positive one: nothing to overflow.
    decay = (total - total.mT).masked_fill(~lower, -torch.inf).exp()
    weighted = rate * key
    coupling = decay * (weighted @ key.mT)
    sources = torch.cat((rate * value, total.exp() * weighted), dim=-1)
    # Reads the coupling below its diagonal alone.
    solved = torch.linalg.solve_triangular(coupling, sources, upper=False, unitriangular=True)
    written, erased = solved.split((value.shape[-1], key.shape[-1]), dim=-1)
    scores = decay * (query @ key.mT)
    if time <= CHUNK:
        return join_chunks(scores @ written, time)
    to_end = (total[..., -1:, :] - total).exp() * key
    states, updates = corrected_before_each(written, erased, to_end, total[..., -1:, :].exp())
    return join_chunks(scores @ updates + (total.exp() * query) @ states, time)


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
    """Forward operations for one head, padding included; the solve is one product with a triangle."""
    chunk = min(chunk, time)
    n_chunks = -(-time // chunk)
    products = 2 * chunk**2 * (2 * d_key + d_value) + chunk**2 * (d_key + d_value)
    states = (6 * chunk + 2) * d_key * d_value if n_chunks > 1 else 0
    return n_chunks * (products + states)
