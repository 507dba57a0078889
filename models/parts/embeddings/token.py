"""The embedding of tokens, with or without the places they stand at."""

from typing import Literal

import torch
from torch import Tensor, nn

from models.ops.attention.positions import sinusoidal_positions


class Token(nn.Embedding):
    """dropout(scale * weight[token] + position): [batch, time] -> [batch, time, d_model].

    `scale` keeps up with parts that expect larger inputs than the weights start with (sqrt(d_model) in Vaswani et al. 2017, arXiv
    1706.03762). `positions` are `none`, `learned` (from N(0, 0.02)), or the fixed `sinusoidal` table, whose entries are about
    0.7 in size: tokens that start from N(0, 0.02) need a `scale` beside them. `dropout` acts in training. What comes out has the
    type of the residual stream (None: the weights').

    Raises:
        ValueError: if there are positions, but no `max_length` to make them for.
    """

    table: Tensor

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        max_length: int | None = None,
        residual_dtype: torch.dtype | None = None,
        *,
        positions: Literal["none", "learned", "sinusoidal"] = "none",
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        if positions != "none" and max_length is None:
            raise ValueError(f"positions = '{positions}' needs the rack's max_length")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout} must be at least 0 and below 1")
        super().__init__(vocab_size, d_model)
        self.residual_dtype = residual_dtype
        self.scale, self.max_length = scale, None if positions == "none" else max_length
        self.positions: nn.Embedding | None = None
        if positions == "learned":
            self.positions = nn.Embedding(max_length or 0, d_model)
            nn.init.normal_(self.positions.weight, std=0.02)
        self.register_buffer("table", self.tables()["table"], persistent=False)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def tables(self) -> dict[str, Tensor | None]:
        """The buffers that are computed and no part of the state, by name."""
        is_fixed = self.max_length is not None and self.positions is None
        return {"table": sinusoidal_positions(self.max_length or 0, self.embedding_dim) if is_fixed else None}

    def forward(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """[batch, time] -> [batch, time, d_model]; the first token stands at position `offset`.

        Raises:
            ValueError: for positions from `max_length` on, where there is one.
        """
        embedded = super().forward(tokens)
        if self.scale != 1.0:
            embedded = embedded * self.scale
        if self.max_length is not None:
            embedded = embedded + self._positions(offset, offset + tokens.shape[-1])
        embedded = embedded if self.dropout is None else self.dropout(embedded)
        return embedded if self.residual_dtype is None else embedded.to(self.residual_dtype)

    def _positions(self, first: int, end: int) -> Tensor:
        assert self.max_length is not None  # asked for where there are positions
        if end > self.max_length:
            raise ValueError(f"the sequence has {end} positions, but the embedding has max_length = {self.max_length}")
        if self.positions is None:
            return self.table[first:end]
        return self.positions(torch.arange(first, end, device=self.weight.device))
