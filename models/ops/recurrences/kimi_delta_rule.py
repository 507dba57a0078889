"""The delta rule with a decay for every key channel (Kimi Team 2025, arXiv 2510.26692), in chunks."""

from functools import partial

import torch
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunks import in_chunks, join_chunks
from models.ops.recurrences.corrected_chunks import decayed_by_channel
from models.ops.recurrences.delta_rule import gated_delta_rule_flops
from models.ops.recurrences.gated_linear_attention import GATED_CHUNK

# The same products; decays are none.
kimi_delta_rule_flops = partial(gated_delta_rule_flops, chunk=GATED_CHUNK)


@in_float32
def kimi_delta_rule(query: Tensor, key: Tensor, value: Tensor, rate: Tensor, log_decay: Tensor) -> Tensor:
    """y_t = q_t S_t with S_t = diag(a_t) S_{t-1} + k_t u_t^T, where u_t = rate_t (v_t - k_t diag(a_t) S_{t-1}).

    Shapes: query, key and log_decay [..., time, d_key] (keys of length at most 1), value [..., time, d_value], rate [..., time]
    -> [..., time, d_value]; a_t = exp(log_decay_t), log decays between LOWEST_LOG_DECAY of gated linear attention and 0.

    The chunks of the gated delta rule, whose (I + A) U = rate (V - e^g K S) gets A_ts = rate_t sum_c k_tc k_sc e^(g_tc - g_sc).
    As in gated linear attention the decay splits around the middle of the chunk, so that nothing overflows.
    """
    time = query.shape[-2]
    query, key, value, rate, log_decay = (
        in_chunks(part, min(GATED_CHUNK, time)) for part in (query, key, value, rate[..., None], log_decay)
    )
    total = log_decay.cumsum(-2)
    middle = total[..., (total.shape[-2] - 1) // 2, :][..., None, :]
    later = (total - middle).exp()
    rows = torch.cat((-rate * key * later, query * later), dim=-2)
    return join_chunks(decayed_by_channel(rows, key * (middle - total).exp(), rate * value, middle, total[..., -1:, :]), time)
