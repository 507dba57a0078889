"""The state-space recurrence with one decay a head, as attention (Dao and Gu 2024, arXiv 2405.21060)."""

from torch import Tensor

from models.ops.precision import in_float32
from models.ops.recurrences.decayed_linear_attention import decayed_linear_attention


@in_float32
def state_space_duality(x: Tensor, steps: Tensor, speed: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """y_t = read_t h_t with h_t = exp(steps_t speed) h_{t-1} + write_t (steps_t x_t)^T.

    Shapes: x [batch, n_heads, time, d_head], steps >= 0 [batch, n_heads, time], speed [n_heads], negative, write and read
    [batch, n_groups, time, d_state] -> x's; the heads of a group share both.
    """
    return decayed_linear_attention(read, write, steps[..., None] * x, steps * speed[:, None])
