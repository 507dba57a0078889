"""The generalised delta rule of RWKV-7 (Peng et al. 2025, arXiv 2503.14456), in chunks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunk_states import corrected_before_each
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks


@in_float32
def rwkv7_recurrence(  # noqa: PLR0917 - what is not positional is not widened to float32
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, removal: Tensor, rate: Tensor
) -> Tensor:
    """y_t = q_t S_t with S_t = (diag(w_t) - (rate_t removal_t)^T removal_t) S_{t-1} + k_t v_t^T and w_t = exp(log_decay_t).

    Shapes: value [..., time, d_value], the others [..., time, d_key] -> [..., time, d_value]; removal of length at most 1,
    rate between 0 and 1, log decays between -1 and 0.

    Within a chunk that starts at S, with g the cumulative log decay, what is removed, u_t = removal_t S_{t-1}, solves
    (I + A) U = B V + e^(g before) removal S, where A_ts and B_ts = sum_c removal_tc x_sc e^(g_{t-1,c} - g_sc) for s < t with
    x = rate removal and x = k. Decays split around the middle of the chunk: exponents stay below 17.
    """
    time = query.shape[-2]
    query, key, value, log_decay, removal, rate = (
        in_chunks(part, min(CHUNK, time)) for part in (query, key, value, log_decay, removal, rate)
    )
    replaced = rate * removal
    total = log_decay.cumsum(-2)
    before = F.pad(total[..., :-1, :], (0, 0, 1, 0))
    middle = total[..., (total.shape[-2] - 1) // 2, :][..., None, :]
    back = (middle - total).exp()
    removing, reading = removal * (before - middle).exp(), query * (total - middle).exp()
    replacing, adding = replaced * back, key * back
    sources = torch.cat((-((removing @ adding.mT).tril(-1) @ value), removal * before.exp()), dim=-1)
    # Reads the coupling below its diagonal alone.
    solved = torch.linalg.solve_triangular(removing @ replacing.mT, sources, upper=False, unitriangular=True)
    written, erased = solved.split((value.shape[-1], key.shape[-1]), dim=-1)
    replaced_scores, added_scores = (reading @ replacing.mT).tril(), (reading @ adding.mT).tril()
    mixed = added_scores @ value
    if time <= CHUNK:
        return join_chunks(mixed + replaced_scores @ written, time)
    end = total[..., -1:, :]
    to_end = (end - total).exp()
    added = (key * to_end).mT @ value
    states, updates = corrected_before_each(written, erased, replaced * to_end, end.mT.exp(), added)
    return join_chunks(mixed + replaced_scores @ updates + (query * total.exp()) @ states, time)


def rwkv7_recurrence_flops(time: int, d_key: int, d_value: int) -> int:
    """Forward operations for one head, padding included; the solve is one product with a triangle."""
    chunk = min(CHUNK, time)
    n_chunks = -(-time // chunk)
    products = 2 * chunk**2 * (4 * d_key + 3 * d_value) + chunk**2 * (d_key + d_value)
    states = (8 * chunk + 2) * d_key * d_value if n_chunks > 1 else 0
    return n_chunks * (products + states)
