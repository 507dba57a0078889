"""The channel mixer of RWKV (Peng et al. 2024, arXiv 2404.05892)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least
from models.ops.convolutions.token_shift import falling, shift, toward
from models.rack.contracts import ChannelMixer


class RWKV(ChannelMixer):
    """sigmoid(gate(x_r)) * down(relu(up(x_k))^2), where x_k and x_r lie between a position and the one before it.

    The gate is the paper's receptance; how far x_k and x_r are moved is learned per channel. `d_ff` None is 4 * d_model.
    This channel mixer also looks at the previous position: its step form keeps the last input.
    """

    has_step = True

    def __init__(self, d_model: int, *, d_ff: int | None = None) -> None:
        super().__init__()
        self.d_ff = 4 * d_model if d_ff is None else d_ff
        at_least(1, d_ff=self.d_ff)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.up = nn.Linear(d_model, self.d_ff, bias=False)
        self.down = nn.Linear(self.d_ff, d_model, bias=False)
        self.shift_up = nn.Parameter(falling(d_model, 1.0))
        self.shift_gate = nn.Parameter(falling(d_model, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels: [..., time, d_model] -> same."""
        return self._mix(x, shift(x))

    def initial_state(self, batch_size: int) -> Tensor:
        """The input before the first position: zeros [batch, d_model]."""
        return self.shift_up.new_zeros(batch_size, self.shift_up.shape[0], dtype=state_dtype(self.shift_up))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mix one position: ([batch, d_model], state) -> ([batch, d_model], next state)."""
        return self._mix(x, state.to(x.dtype)), x.to(state.dtype)

    def flops(self, seq_len: int) -> int:
        """Three products."""
        return 2 * seq_len * multiply_adds(self.gate, self.up, self.down)

    def _mix(self, x: Tensor, previous: Tensor) -> Tensor:
        hidden = F.relu(self.up(toward(previous, x, self.shift_up))).square()
        return self.gate(toward(previous, x, self.shift_gate)).sigmoid() * self.down(hidden)
