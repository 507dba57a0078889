"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) without its normaliser, in chunks."""

from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.chunks import CHUNK, before_each, in_chunks, join_chunks


@in_float32
def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """y_t = q_t sum_{s <= t} k_s v_s^T.

    Shapes: query and key [..., time, d_key], value [..., time, d_value] -> [..., time, d_value].
    """
    time = query.shape[-2]
    query, key, value = (in_chunks(part, min(CHUNK, time)) for part in (query, key, value))
    mixed = (query @ key.mT).tril() @ value
    if time > CHUNK:
        mixed = mixed + query @ before_each(key.mT @ value)
    return join_chunks(mixed, time)


def linear_attention_flops(time: int, d_key: int, d_value: int) -> int:
    """Forward operations for one head, padding included."""
    chunk = min(CHUNK, time)
    n_chunks = -(-time // chunk)
    states = 4 * n_chunks * chunk * d_key * d_value if n_chunks > 1 else 0
    return 2 * n_chunks * chunk**2 * (d_key + d_value) + states
