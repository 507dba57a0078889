"""Mamba: a state-space model whose parameters depend on the input (Gu and Dao 2023, arXiv 2312.00752)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least
from models.ops.convolutions.short_convolution import ShortConvolution
from models.ops.kernels import check_kernel, run_kernel
from models.ops.recurrences.selective_scan import selective_scan_flops
from models.ops.recurrences.time_steps import exact_softplus, inverse_softplus_of_time_steps
from models.rack.contracts import Mixer

MambaState = tuple[Tensor, Tensor]


class Mamba(Mixer):
    """The selective state-space layer (S6) between a gated pair of projections; it needs no channel mixer after it.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and y_t = C_t h_t + D u_t, per channel u of `expand` * d_model with `d_state`
    states; dt, B and C are projections of u, dt through a bottleneck of `dt_rank` (None: d_model / 16, rounded up). u has
    passed a causal short convolution of width `d_conv` and a SiLU. A starts as the real S4D, -1 ... -d_state.
    `kernel`: auto, reference or mamba-ssm.
    """

    has_step = True
    fused: ClassVar[dict[str, tuple[str, ...]]] = {"input": ("inner", "gate"), "select": ("steps", "write", "read")}
    kernel_op = "selective_scan"

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.dt_rank = -(-d_model // 16) if dt_rank is None else dt_rank
        at_least(1, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=self.dt_rank)
        self.d_state, self.d_inner, self.kernel = d_state, expand * d_model, kernel
        self.input = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.convolution = ShortConvolution(self.d_inner, d_conv, bias=True, silu=True, kernel=kernel)
        self.select = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.time_step = nn.Linear(self.dt_rank, self.d_inner)
        self.output = nn.Linear(self.d_inner, d_model, bias=False)
        bias = nn.Parameter(inverse_softplus_of_time_steps(self.d_inner))
        # The spread of time scales: a model that zeroes the biases of its linears must leave this one.
        bias.keep_init = True  # type: ignore[attr-defined]
        self.time_step.bias = bias
        # States before channels, so that the long axis is the contiguous one.
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log()[:, None].repeat(1, self.d_inner))
        self.A_log.decays = False  # type: ignore[attr-defined] # rates of decay: weight decay would slow the fast ones
        self.D = nn.Parameter(torch.ones(self.d_inner))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        inner, gate = self.input(x).chunk(2, dim=-1)
        inner = self.convolution(inner)
        steps, write, read, speed = self._select(inner)
        mixed = run_kernel(self.kernel_op, self.kernel, steps, inner, write, read, speed)
        return self._read_out(mixed, inner, gate)

    def initial_state(self, batch_size: int) -> MambaState:
        """The states [batch, d_state, d_inner] and the convolution's last inputs."""
        states = self.A_log.new_zeros(batch_size, self.d_state, self.d_inner, dtype=state_dtype(self.A_log))
        return states, self.convolution.initial_state(batch_size)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One step of the recurrence."""
        states, inputs = state
        inner, gate = self.input(x).chunk(2, dim=-1)
        inner, inputs = self.convolution.step(inner, inputs)
        steps, write, read, speed = self._select(inner)
        added = write[..., None] * (steps * inner)[..., None, :]
        states = (steps[..., None, :] * speed).exp() * states + added
        return self._read_out((read[..., None] * states).sum(-2), inner, gate), (states, inputs)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The states of every channel."""
        return self.d_inner * self.d_state

    def flops(self, seq_len: int) -> int:
        """Projections, the short convolution, and the chunked scan."""
        linears = (self.input, self.select, self.time_step, self.output)
        scan = selective_scan_flops(seq_len, self.d_inner, self.d_state)
        return 2 * seq_len * multiply_adds(*linears) + self.convolution.flops(seq_len) + scan

    def _select(self, inner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[..., d_inner] -> time steps [..., d_inner], B and C [..., d_state], and A [d_state, d_inner]."""
        steps, write, read = self.select(inner).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return exact_softplus(self.time_step(steps)), write, read, -self.A_log.exp()

    def _read_out(self, mixed: Tensor, inner: Tensor, gate: Tensor) -> Tensor:
        return self.output((mixed.to(inner.dtype) + self.D.to(inner.dtype) * inner) * F.silu(gate))
