"""The delta rule (Schlag et al. 2021, arXiv 2102.11174) in chunks (Yang et al. 2024, arXiv 2406.06484)."""

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunk_states import corrected_before_each
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks
from models.ops.recurrences.delta_rule import gated_delta_rule_flops

# The gated rule's decays are no products.
delta_rule_flops = gated_delta_rule_flops


@in_float32
def delta_rule(query: Tensor, key: Tensor, value: Tensor, rate: Tensor) -> Tensor:
    """y_t = q_t S_t with S_t = S_{t-1} + k_t u_t^T, where u_t = rate_t (v_t - k_t S_{t-1}).

    Shapes: query and key [..., time, d_key] (keys of length at most 1), value [..., time, d_value], rate [..., time]
    -> [..., time, d_value]. The gated delta rule with nothing forgotten, without the work on decays.
    """
    time = query.shape[-2]
    query, key, value, rate = (in_chunks(part, min(CHUNK, time)) for part in (query, key, value, rate[..., None]))
    weighted = rate * key
    sources = torch.cat((rate * value, weighted), dim=-1)
    # Reads the coupling below its diagonal alone.
    solved = torch.linalg.solve_triangular(weighted @ key.mT, sources, upper=False, unitriangular=True)
    written, erased = solved.split((value.shape[-1], key.shape[-1]), dim=-1)
    scores = (query @ key.mT).tril()
    if time <= CHUNK:
        return join_chunks(scores @ written, time)
    states, updates = corrected_before_each(written, erased, key, torch.ones_like(rate[..., :1, :]))
    return join_chunks(scores @ updates + query @ states, time)
