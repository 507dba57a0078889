"""The delta rule (Schlag et al. 2021, arXiv 2102.11174) in chunks (Yang et al. 2024, arXiv 2406.06484)."""

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunks import CHUNK, in_chunks, join_chunks
from models.ops.recurrences.corrected_chunks import below_diagonals, corrected_chunks
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
    rows = torch.cat((-rate * key, query), dim=-2)
    scores = below_diagonals(rows @ key.mT)
    return join_chunks(corrected_chunks(scores, rows, key, rate * value, torch.ones_like(rate[..., :1, :])), time)
