"""DeltaNet (Schlag et al. 2021, arXiv 2102.11174; parallel over the length: Yang et al. 2024, arXiv 2406.06484)."""

import math

from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import split_heads
from models.ops.checks import at_least, scaled, split_evenly
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.ops.kernels import check_kernel, run_kernel
from models.ops.recurrences.delta_rule import delta_step
from models.ops.recurrences.ungated_delta_rule import delta_rule_flops
from models.ops.unit import unit
from models.parts.norms.rmsnorm import RMSNorm
from models.rack.contracts import Mixer

DeltaState = tuple[Tensor, tuple[Tensor, ...]]


class DeltaNet(Mixer):
    """A fast-weight memory that replaces what it held for a key by what it is told, and forgets nothing else.

    S_t = S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T and y_t = S_t q_t, with unit k and q, and b = sigmoid; the output is
    normalised per head. `d_conv` is the width of the causal short convolutions (with SiLU) on query, key and value (0: none,
    and no SiLU). `expand_v` is the size of values by that of keys, d_model / n_heads. `kernel`: auto, reference or fla.
    """

    has_step = True
    kernel_op = "delta_rule"

    def __init__(self, d_model: int, *, n_heads: int = 1, expand_v: float = 1.0, d_conv: int = 4, kernel: str = "auto") -> None:
        super().__init__()
        check_kernel(self.kernel_op, kernel)
        self.n_heads, self.kernel = n_heads, kernel
        self.d_key = split_evenly("d_model", d_model, parts_name="n_heads", parts=n_heads)
        self.d_value = scaled("d_model / n_heads", self.d_key, expand_v=expand_v)
        at_least(0, d_conv=d_conv)
        values = n_heads * self.d_value
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, values, bias=False)
        self.rate = nn.Linear(d_model, n_heads, bias=False)
        self.output = nn.Linear(values, d_model, bias=False)
        self.norm = RMSNorm(self.d_value)
        self.convolutions = ShortConvolutions((d_model, d_model, values), d_conv, silu=True, kernel=kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        parts = self.convolutions(self.query(x), self.key(x), self.value(x))
        query, key, value = (split_heads(part, self.n_heads) for part in parts)
        query, key = unit(query) / math.sqrt(self.d_key), unit(key)
        mixed = run_kernel(self.kernel_op, self.kernel, query, key, value, self.rate(x).sigmoid().mT)
        return self._read_out(mixed.transpose(1, 2), x)

    def initial_state(self, batch_size: int) -> DeltaState:
        """The memory [batch, n_heads, d_key, d_value] and the convolutions' last inputs."""
        weight = self.query.weight
        memory = weight.new_zeros(batch_size, self.n_heads, self.d_key, self.d_value, dtype=state_dtype(weight))
        return memory, self.convolutions.initial_state(batch_size)

    def step(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        """Correct the memory at the key, read it at the query."""
        memory, inputs = state
        parts, inputs = self.convolutions.step(inputs, self.query(x), self.key(x), self.value(x))
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)) for part in parts)
        query, key = unit(query) / math.sqrt(self.d_key), unit(key)
        mixed, memory = delta_step(memory, query, key, value, self.rate(x).sigmoid())
        return self._read_out(mixed, x), (memory, inputs)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """The memory of every head."""
        return self.n_heads * self.d_key * self.d_value

    def flops(self, seq_len: int) -> int:
        """Projections, short convolutions and the chunked delta rule."""
        projections = 2 * seq_len * multiply_adds(self.query, self.key, self.value, self.rate, self.output)
        heads = self.n_heads * delta_rule_flops(seq_len, self.d_key, self.d_value)
        return projections + heads + self.convolutions.flops(seq_len)

    def _read_out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """[..., n_heads, d_value] -> [..., d_model], of the type of the layer's input."""
        return self.output(self.norm(mixed).flatten(-2).to(x.dtype))
