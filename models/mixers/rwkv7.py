"""The time mixer of RWKV-7, Goose (Peng et al. 2025, arXiv 2503.14456)."""

import math

import torch
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least, split_evenly
from models.ops.convolutions.token_shift import LowRank, falling, shift, toward
from models.ops.kernels import check_kernel, run_kernel
from models.ops.precision import in_float32
from models.ops.recurrences.rwkv7_recurrence import rwkv7_recurrence_flops
from models.ops.unit import unit
from models.rack.contracts import Mixer

RWKV7State = tuple[Tensor, Tensor]
# How the shares of the token shift start; also the order in which they are read.
_SHIFT_POWERS = {"query": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}
FASTEST = math.exp(-0.5)
_NORM_EPS = 64e-5


class RWKV7(Mixer):
    """A fast-weight memory that decays by channel, and in which every channel of a key is replaced at a rate of its own.

    S_t = (diag(w_t) - (a_t * c_t)^T c_t) S_{t-1} + k_t v_t^T and y_t = r_t S_t + (r_t . (r_k * k_t)) v_t, with
    w = exp(-e^-0.5 sigmoid(.)), the rate a = sigmoid(.), c the unit vector along k * k_k (per head) and k itself scaled by
    1 + (a - 1) k_a; decay, rate and gate (a sigmoid inside) are of low rank. Receptance r (here `query`) and the others each read
    a fixed mixture of the position and the one before it. The sum S r is normalised per head, the whole gated.

    The paper's value residual (later layers mix in the first layer's values) is left out: a mixer knows no other layer.
    `kernel`: auto, reference or fla.
    """

    has_step = True
    kernel_op = "rwkv7_recurrence"

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        decay_rank: int = 32,
        rate_rank: int = 32,
        gate_rank: int = 32,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.n_heads, self.kernel = n_heads, kernel
        self.d_head = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        at_least(1, decay_rank=decay_rank, rate_rank=rate_rank, gate_rank=gate_rank)
        self.shares = nn.Parameter(torch.stack([falling(d_model, power) for power in _SHIFT_POWERS.values()]))
        self.shares.decays = False  # type: ignore[attr-defined] # numbers a channel, as `mu` of `DynamicShift`
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        place = torch.arange(d_model) / max(1, d_model - 1)
        self.decay = LowRank(d_model, decay_rank, activation=torch.tanh, start=5 * place**0.85 - 6.5)
        self.rate = LowRank(d_model, rate_rank, start=torch.zeros(d_model))
        self.gate = LowRank(d_model, gate_rank, activation=torch.sigmoid)
        self.k_k = nn.Parameter(torch.full((d_model,), 0.85))
        self.k_a = nn.Parameter(torch.ones(d_model))
        self.r_k = nn.Parameter(torch.zeros(n_heads, self.d_head))
        self.r_k.decays = False  # type: ignore[attr-defined] # a number a channel, by heads
        self.norm = nn.GroupNorm(n_heads, d_model, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts, gate = self._read(x, shift(x))
        mixed = run_kernel(self.kernel_op, self.kernel, *(part.transpose(1, 2) for part in parts))
        return self._read_out(mixed.transpose(1, 2), parts, gate)

    def initial_state(self, batch_size: int) -> RWKV7State:
        """The memory [batch, n_heads, d_head, d_head] and the last input [batch, d_model]."""
        empty = self.r_k.new_zeros(batch_size, self.n_heads, self.d_head, self.d_head, dtype=state_dtype(self.r_k))
        return empty, empty.new_zeros(batch_size, self.n_heads * self.d_head)

    def step(self, x: Tensor, state: RWKV7State) -> tuple[Tensor, RWKV7State]:
        """Decay the memory, remove and add, read it."""
        memory, previous = state
        parts, gate = self._read(x, previous.to(x.dtype))
        mixed, memory = _step(memory, *(part[..., None, :] for part in parts))
        return self._read_out(mixed[..., 0, :], parts, gate), (memory, x.to(previous.dtype))

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The memory of every head."""
        return self.n_heads * self.d_head**2

    def flops(self, seq_len: int) -> int:
        """Projections and the chunked recurrence."""
        projections = 2 * seq_len * multiply_adds(*(part for part in self.modules() if isinstance(part, nn.Linear)))
        return projections + self.n_heads * rwkv7_recurrence_flops(seq_len, self.d_head, self.d_head)

    @torch.no_grad()
    def set_memory_length(self, n_positions: int) -> tuple[str, ...]:
        """By the bias: e^-0.5 sigmoid(b) = 1 / n_positions, where the input says nothing; nothing forgets within one."""
        at_least(2, n_positions=n_positions)
        self.decay.up.bias.fill_(-math.log(n_positions * FASTEST - 1))
        return ("decay.up.bias",)

    def _read(self, x: Tensor, previous: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Query, key, value, log decay, removal and rate, [..., n_heads, d_head] each, and the gate [..., d_model]."""
        query, decay, key, value, rate, gate = (toward(previous, x, share) for share in self.shares)
        key, rate = self.key(key), self.rate(rate).sigmoid()
        own = key * (1 + (rate - 1) * self.k_a)
        parts = (self.query(query), own, self.value(value), _log_decay(self.decay(decay)), key * self.k_k, rate)
        query, own, value, log_decay, removal, rate = (part.unflatten(-1, (self.n_heads, -1)) for part in parts)
        return (query, own, value, log_decay, unit(removal), rate), self.gate(gate)

    def _read_out(self, mixed: Tensor, parts: tuple[Tensor, ...], gate: Tensor) -> Tensor:
        """[..., n_heads, d_head], the parts and the gate -> [..., d_model]."""
        query, key, value, *_ = parts
        rows = mixed.reshape(-1, self.n_heads * self.d_head).to(self.norm.weight.dtype)
        normalised = self.norm(rows).view_as(gate)
        here = (query * key * self.r_k).sum(-1, keepdim=True) * value
        return self.output((normalised + here.flatten(-2)).to(gate.dtype) * gate)


@in_float32
def _log_decay(logits: Tensor) -> Tensor:
    return -FASTEST * logits.sigmoid()


@in_float32
def _step(memory: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
    """What one position (the parts [batch, n_heads, 1, d_head] each) reads from the memory with itself, and the memory."""
    query, key, value, log_decay, removal, rate = parts
    removed = (rate * removal).mT @ (removal @ memory)
    memory = log_decay.exp().mT * memory - removed + key.mT @ value
    return query @ memory, memory
