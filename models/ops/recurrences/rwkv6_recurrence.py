"""The recurrence of RWKV-6 (Peng et al. 2024, arXiv 2404.05892), in chunks."""

import torch.nn.functional as F
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunk_states import decayed_before_each
from models.ops.recurrences.chunks import in_chunks, join_chunks
from models.ops.recurrences.gated_linear_attention import GATED_CHUNK, gated_linear_attention_flops

# The same products; the bonus is element-wise.
rwkv6_recurrence_flops = gated_linear_attention_flops


@in_float32
def rwkv6_recurrence(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor) -> Tensor:
    """y_t = q_t (S_{t-1} + diag(bonus) k_t v_t^T) with S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T.

    Shapes: query, key and log_decay [..., n_heads, time, d_key], value [..., n_heads, time, d_value], bonus [n_heads, d_key]
    -> [..., n_heads, time, d_value]; log decays are between LOWEST_LOG_DECAY of gated linear attention and 0.

    The chunks of gated linear attention, except that a position reads the state before it is written: its decays end one
    position earlier.
    """
    time = query.shape[-2]
    here = (query * bonus[:, None] * key).sum(-1, keepdim=True) * value
    query, key, value, log_decay = (in_chunks(part, min(GATED_CHUNK, time)) for part in (query, key, value, log_decay))
    total = log_decay.cumsum(-2)
    before = F.pad(total[..., :-1, :], (0, 0, 1, 0))
    end = total[..., -1:, :]
    middle = total[..., (total.shape[-2] - 1) // 2, :][..., None, :]
    scores = ((query * (before - middle).exp()) @ (key * (middle - total).exp()).mT).tril(-1)
    mixed = scores @ value
    if time > GATED_CHUNK:
        added = (key * (end - total).exp()).mT @ value
        mixed = mixed + (query * before.exp()) @ decayed_before_each(added, end.mT.exp())
    return join_chunks(mixed, time) + here
