"""The time mixer of RWKV-6, Finch (Peng et al. 2024, arXiv 2404.05892)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import split_heads
from models.ops.checks import at_least, split_evenly
from models.ops.convolutions.token_shift import DynamicShift, LowRank, shift
from models.ops.kernels import check_kernel, run_kernel
from models.ops.precision import in_float32
from models.ops.recurrences.gated_linear_attention import LOWEST_LOG_DECAY
from models.ops.recurrences.rwkv6_recurrence import rwkv6_recurrence_flops
from models.rack.contracts import Mixer

RWKV6State = tuple[Tensor, Tensor]
# How the shares of the token shift start; also the order in which they are read.
_SHIFT_POWERS = {"query": 0.5, "key": 1.0, "value": 1.0, "gate": 0.5, "decay": 1.0}
_NORM_EPS = 64e-5


class RWKV6(Mixer):
    """A fast-weight memory in which every key channel forgets at its own, data-dependent pace, with a bonus for the present.

    S_t = diag(w_t) S_{t-1} + k_t v_t^T and y_t = r_t (S_{t-1} + diag(u) k_t v_t^T), with w = exp(-exp(d)), d of low rank
    (`decay_rank`) and log w no lower than -5. Receptance r (here `query`), key, value, gate and decay each read a mixture of the
    position and the one before it, by shares that depend on both through `shift_rank` channels. The output is normalised per
    head and gated by a SiLU. `kernel`: auto, reference or fla.
    """

    has_step = True
    kernel_op = "rwkv6_recurrence"

    def __init__(
        self, d_model: int, *, n_heads: int = 1, shift_rank: int = 32, decay_rank: int = 64, kernel: str = "auto"
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.n_heads, self.kernel = n_heads, kernel
        self.d_head = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        at_least(1, shift_rank=shift_rank, decay_rank=decay_rank)
        self.shift = DynamicShift(d_model, shift_rank, powers=_SHIFT_POWERS)
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.norm = nn.GroupNorm(n_heads, d_model, eps=_NORM_EPS)
        channels = torch.arange(d_model)
        place = channels / max(1, d_model - 1)
        self.decay = LowRank(d_model, decay_rank, activation=torch.tanh, start=5 * place**0.7 - 6)
        self.bonus = nn.Parameter(0.1 * ((channels + 1) % 3 - 1.0).unflatten(0, (n_heads, -1)))
        self.bonus.decays = False  # type: ignore[attr-defined] # a number a channel, by heads

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        *parts, gate, log_decay = self._read(x, shift(x))
        heads = (split_heads(part, self.n_heads) for part in (*parts, log_decay))
        mixed = run_kernel(self.kernel_op, self.kernel, *heads, self.bonus)
        return self._read_out(mixed.transpose(1, 2), gate)

    def initial_state(self, batch_size: int) -> RWKV6State:
        """The memory [batch, n_heads, d_head, d_head] and the last input [batch, d_model]."""
        empty = self.bonus.new_zeros(batch_size, self.n_heads, self.d_head, self.d_head, dtype=state_dtype(self.bonus))
        return empty, empty.new_zeros(batch_size, self.n_heads * self.d_head)

    def step(self, x: Tensor, state: RWKV6State) -> tuple[Tensor, RWKV6State]:
        """Read the memory and the present, decay the memory, add the present to it."""
        memory, previous = state
        *parts, gate, log_decay = self._read(x, previous.to(x.dtype))
        heads = (part.unflatten(-1, (self.n_heads, -1)) for part in (*parts, log_decay))
        mixed, memory = _step(memory, self.bonus, *heads)
        return self._read_out(mixed, gate), (memory, x.to(previous.dtype))

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The memory of every head."""
        return self.n_heads * self.d_head**2

    def flops(self, seq_len: int) -> int:
        """Projections and the chunked recurrence."""
        projections = 2 * seq_len * multiply_adds(*(part for part in self.modules() if isinstance(part, nn.Linear)))
        return projections + self.n_heads * rwkv6_recurrence_flops(seq_len, self.d_head, self.d_head)

    @torch.no_grad()
    def set_memory_length(self, n_positions: int) -> tuple[str, ...]:
        """By the bias: exp(d) = 1 / n_positions, where the input says nothing."""
        self.decay.up.bias.fill_(-math.log(n_positions))
        return ("decay.up.bias",)

    def _read(self, x: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """Query, key, value, gate and log decay, [..., d_model] each."""
        query, key, value, gate, decay = self.shift(x, previous)
        return self.query(query), self.key(key), self.value(value), self.gate(gate), _log_decay(self.decay(decay))

    def _read_out(self, mixed: Tensor, gate: Tensor) -> Tensor:
        """[..., n_heads, d_head] and the gate's logits -> [..., d_model]."""
        rows = mixed.reshape(-1, self.n_heads * self.d_head).to(self.norm.weight.dtype)
        normalised = self.norm(rows).view_as(gate)
        return self.output(normalised.to(gate.dtype) * F.silu(gate))


@in_float32
def _log_decay(logits: Tensor) -> Tensor:
    # Limited before the exponential: after it the gradient of what overflowed would be 0 * inf.
    return -logits.clamp(max=math.log(-LOWEST_LOG_DECAY)).exp()


@in_float32
def _step(memory: Tensor, bonus: Tensor, *heads: Tensor) -> tuple[Tensor, Tensor]:
    """What one position (query, key, value, log decay [batch, n_heads, d_head] each) reads, and the memory after it."""
    query, key, value, log_decay = heads
    added = key[..., None] * value[..., None, :]
    mixed = query[..., None, :] @ (memory + bonus[..., None] * added)
    return mixed[..., 0, :], log_decay.exp()[..., None] * memory + added
