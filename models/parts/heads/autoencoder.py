"""The read-out of the compression task: everything must come back out of one position (Poli et al. 2024, appendix B.1)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.attention.positions import sinusoidal_positions
from models.rack.contracts import Head
from models.rack.padding import TokensFirst


class Autoencoder(Head):
    """Pools the sequence to one vector and decodes `max_length` positions from it.

    encoding [batch, d_model] + fixed sinusoidal position table [max_length, d_model], then twice norm-linear-GELU, then norm and
    a linear to the vocabulary. `pooling` takes the last position, the first, or the mean over positions; pads are none.
    """

    takes_attention_mask = True
    positions: Tensor

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        max_length: int,
        make_norm: Callable[[], nn.Module],
        *,
        pooling: Literal["last", "first", "mean"] = "last",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pooling, self.d_model, self.max_length = pooling, d_model, max_length
        self.register_buffer("positions", self.tables()["positions"], persistent=False)
        self.decoder = nn.Sequential(
            *(layer for _ in range(2) for layer in (make_norm(), nn.Linear(d_model, d_model, bias=bias), nn.GELU()))
        )
        self.norm = make_norm()
        self.output = nn.Linear(d_model, vocab_size, bias=bias)

    def tables(self) -> dict[str, Tensor | None]:
        """The buffers that are computed and no part of the state, by name."""
        return {"positions": sinusoidal_positions(self.max_length, self.d_model)}

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[batch, time, d_model] -> [batch, max_length, vocab_size]."""
        x = x.to(self.output.weight.dtype)
        if attention_mask is None:
            attention_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        decoded = self.decoder(_pooled(x, attention_mask, self.pooling).unsqueeze(1) + self.positions)
        return self.output(self.norm(decoded))

    def flops(self, seq_len: int) -> int:
        """Forward floating-point operations for one sequence; the length decoded is fixed."""
        del seq_len
        linears = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        return 2 * len(self.positions) * multiply_adds(*linears)


def _pooled(x: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """[batch, time, d_model] -> [batch, d_model]; zeros of a row without tokens."""
    tokens, n_tokens = TokensFirst(attention_mask).put(x), attention_mask.sum(1)[:, None]
    if pooling == "first":
        return tokens[:, 0]
    if pooling == "mean":
        return tokens.sum(1) / n_tokens.clamp(min=1)
    last = (n_tokens - 1).clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
    return tokens.gather(1, last)[:, 0]
