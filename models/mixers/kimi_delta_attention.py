"""Kimi Delta Attention (Kimi Team 2025, arXiv 2510.26692)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import split_heads
from models.ops.checks import at_least, scaled, split_evenly
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.ops.convolutions.token_shift import LowRank
from models.ops.kernels import check_kernel, run_kernel
from models.ops.precision import in_float32
from models.ops.recurrences.delta_rule import delta_step
from models.ops.recurrences.gated_linear_attention import LOWEST_LOG_DECAY
from models.ops.recurrences.kimi_delta_rule import kimi_delta_rule_flops
from models.ops.recurrences.time_steps import inverse_softplus_of_time_steps
from models.ops.unit import unit
from models.parts.norms.rmsnorm import RMSNorm
from models.rack.contracts import Mixer

KimiDeltaState = tuple[Tensor, tuple[Tensor, ...]]


class KimiDeltaAttention(Mixer):
    """A fast-weight memory of which every key channel decays by itself, and that replaces what it held for a key.

    S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T and y_t = q_t S_t, with unit k and q, b = sigmoid and
    log a = -exp(A_log) softplus(W_up W_down x + dt_bias), no lower than -5; the output is normalised per head and gated by a
    sigmoid of low rank too. `gate_rank` is the width of both bottlenecks (None: that of a value). `d_conv` is the width of the
    causal short convolutions (with SiLU) on query, key and value (0: none). `expand_v` is the size of values by that of keys,
    d_model / n_heads. There are no biases: of the reference implementations one has one on the output's gate.
    `kernel`: auto, reference or fla.
    """

    has_step = True
    kernel_op = "kimi_delta_rule"

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        expand_v: float = 1.0,
        gate_rank: int | None = None,
        d_conv: int = 4,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.n_heads, self.kernel = n_heads, kernel
        self.d_key = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        self.d_value = scaled("d_model / n_heads", self.d_key, expand_v=expand_v)
        self.gate_rank = self.d_value if gate_rank is None else gate_rank
        at_least(1, gate_rank=self.gate_rank)
        at_least(0, d_conv=d_conv)
        values = n_heads * self.d_value
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, values, bias=False)
        self.rate = nn.Linear(d_model, n_heads, bias=False)
        self.decay = LowRank(d_model, self.gate_rank)
        self.gate = LowRank(d_model, self.gate_rank, d_out=values)
        self.output = nn.Linear(values, d_model, bias=False)
        self.norm = RMSNorm(self.d_value)
        self.convolutions = ShortConvolutions((d_model, d_model, values), d_conv, silu=True, kernel=kernel)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus_of_time_steps(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts = self.convolutions(self.query(x), self.key(x), self.value(x))
        query, key, value = (split_heads(part, self.n_heads) for part in parts)
        query, key = unit(query) / math.sqrt(self.d_key), unit(key)
        rate, log_decay = self.rate(x).sigmoid().mT, self._log_decay(x).transpose(1, 2)
        mixed = run_kernel(self.kernel_op, self.kernel, query, key, value, rate, log_decay)
        return self._read_out(mixed.transpose(1, 2), x)

    def initial_state(self, batch_size: int) -> KimiDeltaState:
        """The memory [batch, n_heads, d_key, d_value] and the convolutions' last inputs."""
        sizes = batch_size, self.n_heads, self.d_key, self.d_value
        memory = self.A_log.new_zeros(sizes, dtype=state_dtype(self.A_log))
        return memory, self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: KimiDeltaState) -> tuple[Tensor, KimiDeltaState]:
        """Decay the memory, correct it at the key, read it at the query."""
        memory, inputs = state
        parts, inputs = self.convolutions.step(inputs, self.query(x), self.key(x), self.value(x))
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)) for part in parts)
        query, key = unit(query) / math.sqrt(self.d_key), unit(key)
        mixed, memory = delta_step(memory, query, key, value, self.rate(x).sigmoid(), log_decay=self._log_decay(x))
        return self._read_out(mixed, x), (memory, inputs)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The memory of every head."""
        return self.n_heads * self.d_key * self.d_value

    def flops(self, seq_len: int) -> int:
        """Projections, short convolutions and the chunked delta rule."""
        low_rank = (self.decay.down, self.decay.up, self.gate.down, self.gate.up)
        projections = 2 * seq_len * multiply_adds(self.query, self.key, self.value, self.rate, *low_rank, self.output)
        heads = self.n_heads * kimi_delta_rule_flops(seq_len, self.d_key, self.d_value)
        return projections + heads + self.convolutions.flops(seq_len)

    @torch.no_grad()
    def set_memory_length(self, n_positions: int) -> tuple[str, ...]:
        """By the bias: exp(A_log) softplus(dt_bias) = 1 / n_positions, where the input says nothing."""
        pace = torch.expm1(1 / (n_positions * self.A_log.exp())).log()
        self.dt_bias.copy_(pace.repeat_interleave(self.d_key))
        return ("dt_bias",)

    def _log_decay(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., n_heads, d_key]."""
        return _soft_log_decay(self.decay(x), self.A_log, self.dt_bias)

    def _read_out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """[..., n_heads, d_value] and the layer's input -> [..., d_model]."""
        normalised = self.norm(mixed).flatten(-2).to(x.dtype)
        return self.output(normalised * self.gate(x).sigmoid())


@in_float32
def _soft_log_decay(logits: Tensor, log_speed: Tensor, bias: Tensor) -> Tensor:
    steps = F.softplus(logits + bias).unflatten(-1, (log_speed.shape[0], -1))
    return (-log_speed.exp()[:, None] * steps).clamp(min=LOWEST_LOG_DECAY)
