"""Mamba-2: a state-space model with one decay a head, computed as attention (Dao and Gu 2024, arXiv 2405.21060)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import merge_heads, split_heads
from models.ops.checks import at_least, split_evenly
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.ops.kernels import check_kernel, run_kernel
from models.ops.recurrences.decayed_linear_attention import decayed_linear_attention_flops, decayed_step
from models.ops.recurrences.time_steps import exact_softplus, inverse_softplus_of_time_steps
from models.rack.contracts import Mixer

Mamba2State = tuple[Tensor, tuple[Tensor, ...]]


class GroupedRMSNorm(nn.Module):
    """weight * x / sqrt(mean(x ** 2) + eps), the mean over each of `n_groups` equal shares of the channels."""

    def __init__(self, channels: int, n_groups: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., channels] -> same."""
        shares = x.unflatten(-1, (self.n_groups, -1))
        return F.rms_norm(shares, shares.shape[-1:], eps=self.eps).flatten(-2) * self.weight.to(x.dtype)


class Mamba2(Mixer):
    """The state-space dual layer: heads of `d_head` channels with a scalar decay, between a gated pair of projections.

    h_t = exp(dt_t A) h_{t-1} + B_t (dt_t u_t)^T and y_t = C_t h_t + D u_t per head, h [d_state, d_head], with A = -exp(A_log) and
    dt = softplus(time_step(x) + dt_bias), one number a head; the output is W_out norm(y * SiLU(gate(x))). u (`expand` * d_model
    channels), B and C are projections that have passed causal short convolutions of width `d_conv` and a SiLU. B and C are
    shared by the heads of each of `n_groups` groups; the norm is over the channels of a group. `d_head` None is 64, or less where
    that does not divide the channels. `kernel`: auto, reference or mamba-ssm.
    """

    has_step = True
    kernel_op = "state_space_duality"

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        d_head: int | None = None,
        n_groups: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        at_least(1, d_state=d_state, d_conv=d_conv, expand=expand)
        inner = expand * d_model
        self.d_state, self.d_head, self.n_groups, self.kernel = (
            d_state,
            math.gcd(64, inner) if d_head is None else d_head,
            n_groups,
            kernel,
        )
        self.n_heads = split_evenly("expand * d_model", inner, parts_name="d_head", parts=self.d_head)
        split_evenly("n_heads = expand * d_model / d_head", self.n_heads, parts_name="n_groups", parts=n_groups)
        self.gate = nn.Linear(d_model, inner, bias=False)
        self.input = nn.Linear(d_model, inner, bias=False)
        self.write = nn.Linear(d_model, n_groups * d_state, bias=False)
        self.read = nn.Linear(d_model, n_groups * d_state, bias=False)
        self.time_step = nn.Linear(d_model, self.n_heads, bias=False)
        self.output = nn.Linear(inner, d_model, bias=False)
        sizes = (inner, n_groups * d_state, n_groups * d_state)
        self.convolutions = ShortConvolutions(sizes, d_conv, bias=True, silu=True, kernel=kernel)
        self.norm = GroupedRMSNorm(inner, n_groups)
        self.A_log = nn.Parameter(torch.empty(self.n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus_of_time_steps(self.n_heads))
        self.D = nn.Parameter(torch.ones(self.n_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        inner, write, read = self.convolutions(self.input(x), self.write(x), self.read(x))
        write, read = split_heads(write, self.n_groups), split_heads(read, self.n_groups)
        heads, steps, speed = split_heads(inner, self.n_heads), self._steps(x).mT, -self.A_log.exp()
        mixed = run_kernel(self.kernel_op, self.kernel, heads, steps, speed, write, read)
        return self._read_out(merge_heads(mixed), inner, x)

    def initial_state(self, batch_size: int) -> Mamba2State:
        """The states [batch, n_heads, d_state, d_head] and the convolutions' last inputs."""
        sizes = batch_size, self.n_heads, self.d_state, self.d_head
        states = self.A_log.new_zeros(sizes, dtype=state_dtype(self.A_log))
        return states, self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        """One step of the recurrence."""
        states, inputs = state
        (inner, write, read), inputs = self.convolutions.step(inputs, self.input(x), self.write(x), self.read(x))
        write, read = (
            part.unflatten(-1, (self.n_groups, -1)).repeat_interleave(self.n_heads // self.n_groups, dim=1)
            for part in (write, read)
        )
        steps = self._steps(x)[..., None]
        value, log_decay = steps * inner.unflatten(-1, (self.n_heads, -1)), -self.A_log.exp()[:, None] * steps
        mixed, states = decayed_step(states, read, write, value, log_decay)
        return self._read_out(mixed.flatten(-2), inner, x), (states, inputs)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The states of every head."""
        return self.n_heads * self.d_state * self.d_head

    def flops(self, seq_len: int) -> int:
        """Projections, short convolutions and the chunked products."""
        linears = (self.gate, self.input, self.write, self.read, self.time_step, self.output)
        sizes = {"n_heads": self.n_heads, "n_groups": self.n_groups}
        mixing = decayed_linear_attention_flops(seq_len, self.d_state, self.d_head, **sizes)
        return 2 * seq_len * multiply_adds(*linears) + self.convolutions.flops(seq_len) + mixing

    @torch.no_grad()
    def set_memory_length(self, n_positions: int) -> tuple[str, ...]:
        """By the speed: exp(A_log) softplus(dt_bias) = 1 / n_positions; the steps themselves also scale what is written."""
        self.A_log.copy_(-(n_positions * exact_softplus(self.dt_bias)).log())
        return ("A_log",)

    def _steps(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., n_heads], in float32."""
        return exact_softplus(self.time_step(x).to(self.dt_bias.dtype) + self.dt_bias)

    def _read_out(self, mixed: Tensor, inner: Tensor, x: Tensor) -> Tensor:
        """The heads' outputs and inputs [..., expand * d_model] and the layer's input -> [..., d_model]."""
        skip = self.D.to(inner.dtype).repeat_interleave(self.d_head) * inner
        return self.output(self.norm((mixed.to(inner.dtype) + skip) * F.silu(self.gate(x))))
