"""Linear attention with a decay for every key channel (Yang et al. 2023, arXiv 2312.06635), in chunks."""

from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunk_states import decayed_before_each
from models.ops.recurrences.chunks import in_chunks, join_chunks

GATED_CHUNK = 16
# A channel forgets by at most this in one step (to 0.7 %). It bounds the exponents below: half a chunk of it is 40.
LOWEST_LOG_DECAY = -5.0


@in_float32
def gated_linear_attention(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """y_t = q_t S_t with S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T.

    Shapes: query, key and log_decay [..., time, d_key], value [..., time, d_value] -> [..., time, d_value]; log decays are
    between LOWEST_LOG_DECAY and 0.

    Within a chunk the decay from s to t is exp(g_t - g_s), g their cumulative sum. It splits into a factor of the query and one
    of the key around the middle of the chunk, so that neither exponent passes 40 and nothing overflows.
    """
    time = query.shape[-2]
    query, key, value, log_decay = (in_chunks(part, min(GATED_CHUNK, time)) for part in (query, key, value, log_decay))
    total = log_decay.cumsum(-2)
    end = total[..., -1:, :]
    middle = total[..., (total.shape[-2] - 1) // 2, :][..., None, :]
    scores = ((query * (total - middle).exp()) @ (key * (middle - total).exp()).mT).tril()
    mixed = scores @ value
    if time > GATED_CHUNK:
        added = (key * (end - total).exp()).mT @ value
        mixed = mixed + (query * total.exp()) @ decayed_before_each(added, end.mT.exp())
    return join_chunks(mixed, time)


def gated_linear_attention_flops(time: int, d_key: int, d_value: int, *, chunk: int = GATED_CHUNK) -> int:
    """Forward operations for one head, padding included."""
    chunk = min(chunk, time)
    n_chunks = -(-time // chunk)
    within = 2 * n_chunks * chunk**2 * (d_key + d_value)
    states = (4 * n_chunks * chunk + 2 * (n_chunks - 1)) * d_key * d_value if n_chunks > 1 else 0
    return within + states
