"""The read-out of language models: norm, then one linear to the vocabulary at every position."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.mixer import Head
from models.ops.linears import multiply_adds


class LanguageModel(Head):
    """[batch, time, d_model] -> logits [batch, time, vocab_size]."""

    def __init__(self, d_model: int, vocab_size: int, make_norm: Callable[[], nn.Module], *, bias: bool = False) -> None:
        super().__init__()
        self.norm = make_norm()
        self.output = nn.Linear(d_model, vocab_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d_model] -> [batch, time, vocab_size]."""
        return self.output(self.norm(x))

    def flops(self, seq_len: int) -> int:
        """Forward floating-point operations for one sequence."""
        return 2 * seq_len * multiply_adds(self.output)
