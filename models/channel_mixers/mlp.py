"""The two-layer perceptron of the Transformer."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least
from models.rack.contracts import ChannelMixer


class MLP(ChannelMixer):
    """down(GELU(up(x))), with the tanh form of the GELU; `d_ff` None is 4 * d_model."""

    def __init__(self, d_model: int, *, d_ff: int | None = None) -> None:
        super().__init__()
        self.d_ff = 4 * d_model if d_ff is None else d_ff
        at_least(1, d_ff=self.d_ff)
        self.up = nn.Linear(d_model, self.d_ff, bias=False)
        self.down = nn.Linear(self.d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels: [..., d_model] -> same."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def flops(self, seq_len: int) -> int:
        """Two products."""
        return 2 * seq_len * multiply_adds(self.up, self.down)
