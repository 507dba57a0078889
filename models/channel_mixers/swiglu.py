"""The gated perceptron of Shazeer 2020 (arXiv 2002.05202)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least
from models.rack.contracts import ChannelMixer


class SwiGLU(ChannelMixer):
    """down(activation(gate(x)) * up(x)), with SiLU, or with GELU in its tanh form (`activation: gelu_tanh`, the GEGLU of Gemma).

    `d_ff` None is 2/3 of 4 * d_model, as many parameters as an MLP has, rounded up to a multiple of 16.
    """

    def __init__(self, d_model: int, *, d_ff: int | None = None, activation: Literal["silu", "gelu_tanh"] = "silu") -> None:
        super().__init__()
        self.d_ff = -(-(8 * d_model // 3) // 16) * 16 if d_ff is None else d_ff
        at_least(1, d_ff=self.d_ff)
        self.activation = activation
        self.gate = nn.Linear(d_model, self.d_ff, bias=False)
        self.up = nn.Linear(d_model, self.d_ff, bias=False)
        self.down = nn.Linear(self.d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels: [..., d_model] -> same."""
        gate = self.gate(x)
        opened = F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")
        return self.down(opened * self.up(x))

    def flops(self, seq_len: int) -> int:
        """Three products."""
        return 2 * seq_len * multiply_adds(self.gate, self.up, self.down)
