"""The generalised delta rule of RWKV-7 (Peng et al. 2025, arXiv 2503.14456), in chunks."""

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks
from models.ops.recurrences.corrected_chunks import corrected_chunks_flops, decayed_by_channel


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
    total = log_decay.cumsum(-2)
    middle = total[..., (total.shape[-2] - 1) // 2, :][..., None, :]
    back = (middle - total).exp()
    # Removed is what was there before the position decayed.
    rows = torch.cat((-removal * (total - log_decay - middle).exp(), query * (total - middle).exp()), dim=-2)
    columns = torch.cat((rate * removal * back, key * back), dim=-2)
    return join_chunks(decayed_by_channel(rows, columns, value, middle, total[..., -1:, :]), time)


def rwkv7_recurrence_flops(time: int, d_key: int, d_value: int) -> int:
    """Forward operations for one head, padding included."""
    chunk = min(CHUNK, time)
    n_chunks = -(-time // chunk)
    return n_chunks * 8 * chunk**2 * d_key + corrected_chunks_flops(n_chunks, chunk, d_key, d_value, columns=2 * chunk)
