"""Retention, the mixer of RetNet (Sun et al. 2023, arXiv 2307.08621)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import split_heads
from models.ops.attention.rotary import rotate
from models.ops.checks import scaled, split_evenly
from models.ops.kernels import check_kernel, run_kernel
from models.ops.recurrences.decayed_linear_attention import decayed_step
from models.ops.recurrences.retention import retention_flops
from models.parts.norms.rmsnorm import RMSNorm
from models.rack.contracts import Mixer

RetentionState = tuple[Tensor, Tensor]
ROTARY_BASE = 10000.0


class Retention(Mixer):
    """Linear attention with rotary positions that forgets at a fixed pace, head h by 1 - 2^(-5-h) a position.

    S_t = g S_{t-1} + k_t v_t^T and y_t = q_t S_t / sqrt(d_key), where q and k are rotated by their positions; the output is
    normalised per head and gated. `expand_v` is the size of values by that of keys, d_model / n_heads (2 in the paper).
    `kernel`: auto, reference or fla.
    """

    has_step = True
    kernel_op = "retention"

    def __init__(self, d_model: int, *, n_heads: int = 1, expand_v: float = 1.0, kernel: str = "auto") -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.n_heads, self.kernel = n_heads, kernel
        self.d_key = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        if self.d_key % 2:
            raise ValueError(f"n_heads = {n_heads}: the rotation needs an even head size, but d_model / n_heads = {self.d_key}")
        self.d_value = scaled("d_model / n_heads", self.d_key, expand_v=expand_v)
        values = n_heads * self.d_value
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, values, bias=False)
        self.gate = nn.Linear(d_model, values, bias=False)
        self.output = nn.Linear(values, d_model, bias=False)
        self.norm = RMSNorm(self.d_value)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        query, key, value = self._heads(x, torch.arange(x.shape[1], device=x.device))
        mixed = run_kernel(self.kernel_op, self.kernel, query, key, value, self._log_decay(x.device))
        return self._read_out(mixed.transpose(1, 2), x)

    def initial_state(self, batch_size: int) -> RetentionState:
        """The memory [batch, n_heads, d_key, d_value] and the position.

        To turn the memory back at every step would need no position, but rounds it every time.
        """
        weight = self.query.weight
        memory = weight.new_zeros(batch_size, self.n_heads, self.d_key, self.d_value, dtype=state_dtype(weight))
        return memory, torch.zeros(1, dtype=torch.long, device=memory.device)

    def step(self, x: Tensor, state: RetentionState) -> tuple[Tensor, RetentionState]:
        """Decay the memory, add to it, read it."""
        memory, position = state
        query, key, value = (part[..., 0, :] for part in self._heads(x[:, None], position))
        mixed, memory = decayed_step(memory, query, key, value, self._log_decay(x.device)[:, None])
        return self._read_out(mixed, x), (memory, position + 1)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The memory of every head."""
        return self.n_heads * self.d_key * self.d_value

    def flops(self, seq_len: int) -> int:
        """Projections and the chunked recurrence."""
        projections = 2 * seq_len * multiply_adds(self.query, self.key, self.value, self.gate, self.output)
        return projections + self.n_heads * retention_flops(seq_len, self.d_key, self.d_value)

    def _heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, time, d_model] -> scaled, rotated query, rotated key, and value, [batch, n_heads, time, ...]."""
        query, key, value = (split_heads(linear(x), self.n_heads) for linear in (self.query, self.key, self.value))
        query, key = (rotate(part, positions, ROTARY_BASE) for part in (query / math.sqrt(self.d_key), key))
        return query, key, value

    def _log_decay(self, device: torch.device) -> Tensor:
        """[n_heads]; made where it is used, so that a module built without memory needs none for it."""
        heads = torch.arange(self.n_heads, device=device, dtype=torch.float32)
        return torch.log1p(-torch.exp2(-5 - heads))

    def _read_out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """[..., n_heads, d_value] and the layer's input -> [..., d_model]."""
        normalised = self.norm(mixed).flatten(-2).to(x.dtype)
        return self.output(normalised * F.silu(self.gate(x)))
