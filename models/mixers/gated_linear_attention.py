"""Gated linear attention (Yang et al. 2023, arXiv 2312.06635)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import split_heads
from models.ops.checks import at_least, scaled, split_evenly
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.ops.kernels import check_kernel, run_kernel
from models.ops.precision import in_float32
from models.ops.recurrences.decayed_linear_attention import decayed_step
from models.ops.recurrences.gated_linear_attention import LOWEST_LOG_DECAY, gated_linear_attention_flops
from models.parts.norms.rmsnorm import RMSNorm
from models.rack.contracts import Mixer

GatedState = tuple[Tensor, tuple[Tensor, ...]]
INITIAL_GAIN = 2**-2.5


class GatedLinearAttention(Mixer):
    """A fast-weight memory in which every key channel forgets at its own, data-dependent pace.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T and y_t = q_t S_t / sqrt(d_key), with log a = logsigmoid(W_up W_down x + b) / 16, no
    lower than -5; the output is normalised per head and gated. `expand_k` and `expand_v` are the widths of all keys and values
    by d_model, `gate_rank` that of W_down, `gate_logit_normalizer` the 16. `d_conv` is the width of causal short convolutions
    (with SiLU) on query, key and value (0: none). `kernel`: auto, reference or fla.
    """

    has_step = True
    kernel_op = "gated_linear_attention"

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_logit_normalizer: float = 16.0,
        d_conv: int = 0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        keys, values = scaled("d_model", d_model, expand_k=expand_k), scaled("d_model", d_model, expand_v=expand_v)
        self.n_heads, self.kernel = n_heads, kernel
        self.d_key = split_evenly("expand_k * d_model", keys, parts_name="n_heads", parts=n_heads)
        self.d_value = split_evenly("expand_v * d_model", values, parts_name="n_heads", parts=n_heads)
        at_least(1, gate_rank=gate_rank)
        at_least(0, d_conv=d_conv)
        if gate_logit_normalizer <= 0:
            raise ValueError(f"gate_logit_normalizer = {gate_logit_normalizer} must be positive")
        self.gate_logit_normalizer = gate_logit_normalizer
        self.query = nn.Linear(d_model, keys, bias=False)
        self.key = nn.Linear(d_model, keys, bias=False)
        self.value = nn.Linear(d_model, values, bias=False)
        self.decay_down = nn.Linear(d_model, gate_rank, bias=False)
        self.decay_up = nn.Linear(gate_rank, keys)
        self.gate = nn.Linear(d_model, values, bias=False)
        self.output = nn.Linear(values, d_model, bias=False)
        self.norm = RMSNorm(self.d_value)
        self.convolutions = ShortConvolutions((keys, keys, values), d_conv, silu=True, kernel=kernel)
        for linear in self._linears():
            nn.init.xavier_uniform_(linear.weight, gain=INITIAL_GAIN)
        nn.init.zeros_(self.decay_up.bias)
        self.decay_up.bias.keep_init = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts = self.convolutions(self.query(x), self.key(x), self.value(x))
        query, key, value, log_decay = (split_heads(part, self.n_heads) for part in (*parts, self._log_decay(x)))
        mixed = run_kernel(self.kernel_op, self.kernel, query / math.sqrt(self.d_key), key, value, log_decay)
        return self._read_out(mixed.transpose(1, 2), x)

    def initial_state(self, batch_size: int) -> GatedState:
        """The memory [batch, n_heads, d_key, d_value] and the convolutions' last inputs."""
        weight = self.query.weight
        memory = weight.new_zeros(batch_size, self.n_heads, self.d_key, self.d_value, dtype=state_dtype(weight))
        return memory, self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        """Decay the memory, add to it, read it."""
        memory, inputs = state
        parts, inputs = self.convolutions.step(inputs, self.query(x), self.key(x), self.value(x))
        query, key, value, log_decay = (part.unflatten(-1, (self.n_heads, -1)) for part in (*parts, self._log_decay(x)))
        mixed, memory = decayed_step(memory, query / math.sqrt(self.d_key), key, value, log_decay)
        return self._read_out(mixed, x), (memory, inputs)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The memory of every head."""
        return self.n_heads * self.d_key * self.d_value

    def flops(self, seq_len: int) -> int:
        """Projections and the chunked recurrence."""
        projections = 2 * seq_len * multiply_adds(*self._linears())
        heads = self.n_heads * gated_linear_attention_flops(seq_len, self.d_key, self.d_value)
        return projections + heads + self.convolutions.flops(seq_len)

    @torch.no_grad()
    def set_memory_length(self, n_positions: int) -> tuple[str, ...]:
        """By the bias: logsigmoid(b) / 16 = -1 / n_positions, where the input says nothing."""
        self.decay_up.bias.fill_(-math.log(math.expm1(self.gate_logit_normalizer / n_positions)))
        return ("decay_up.bias",)

    def _linears(self) -> tuple[nn.Linear, ...]:
        return self.query, self.key, self.value, self.decay_down, self.decay_up, self.gate, self.output

    def _log_decay(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., n_heads * d_key]."""
        return _soft_log_decay(self.decay_up(self.decay_down(x)), self.gate_logit_normalizer)

    def _read_out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """[..., n_heads, d_value] and the layer's input -> [..., d_model]."""
        normalised = self.norm(mixed).flatten(-2).to(x.dtype)
        return self.output(normalised * F.silu(self.gate(x)))


@in_float32
def _soft_log_decay(logits: Tensor, normalizer: float) -> Tensor:
    return (F.logsigmoid(logits) / normalizer).clamp(min=LOWEST_LOG_DECAY)
