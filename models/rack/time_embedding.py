"""TimeEmbedding: tells a rack the time step of each sample, sinusoidal or learned."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.linears.multiply_adds import multiply_adds
from models.ops.attention.positions import sinusoidal_positions
from models.ops.checks import at_least


class TimeEmbedding(nn.Module):
    """output(silu(hidden(table[t]))): time steps [batch] int64 -> [batch, 1, d_model], to be added to embedded tokens.

    `kind` sinusoidal has the fixed table of sines and cosines of t, learned one row for each time step. `d_time` is the width of
    table and hidden layer. Either starts at zero, so that a rack that gets one goes on as it was: the sinusoidal kind by a zero
    `output`; the learned kind by a zero table and zero biases, since behind a zero `output` no gradient would reach the table.
    """

    sines: Tensor

    def __init__(
        self, d_model: int, n_steps: int, *, kind: Literal["sinusoidal", "learned"] = "sinusoidal", d_time: int = 512
    ) -> None:
        super().__init__()
        at_least(1, n_steps=n_steps, d_time=d_time)
        self.n_steps = n_steps
        if kind not in ("sinusoidal", "learned"):
            raise ValueError(f"kind = '{kind}' must be one of sinusoidal, learned")
        if kind == "sinusoidal" and d_time % 2:
            raise ValueError(f"d_time = {d_time} must be even with kind = 'sinusoidal': half of it are sines, half cosines")
        self.table = nn.Embedding(n_steps, d_time) if kind == "learned" else None
        self.d_time = d_time
        self.register_buffer("sines", self.tables()["sines"], persistent=False)
        self.hidden, self.output = nn.Linear(d_time, d_time), nn.Linear(d_time, d_model)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.output.bias)
        start = self.output.weight if self.table is None else self.table.weight
        nn.init.zeros_(start)
        start.keep_init = True  # type: ignore[attr-defined]

    def tables(self) -> dict[str, Tensor | None]:
        """The buffers that are computed and no part of the state, by name."""
        return {"sines": sinusoidal_positions(self.n_steps, self.d_time) if self.table is None else None}

    def forward(self, t: Tensor) -> Tensor:
        """[batch] int64, each in [0, n_steps) -> [batch, 1, d_model].

        Raises:
            ValueError: for other shapes and types; for other values where they are at hand, not on a GPU.
        """
        if t.dtype != torch.int64 or t.ndim != 1:
            raise ValueError(f"t must be time steps [batch] int64; got {t.dtype} {list(t.shape)}")
        if t.device.type == "cpu" and not ((t >= 0) & (t < self.n_steps)).all():
            raise ValueError(f"t must be from 0 to {self.n_steps - 1}; got {t.tolist()}")
        rows = self.sines[t] if self.table is None else self.table(t)
        return self.output(F.silu(self.hidden(rows))).unsqueeze(1)

    def flops(self, seq_len: int) -> int:
        """Forward floating-point operations for one sequence: two products, however long it is."""
        del seq_len
        return 2 * multiply_adds(self.hidden, self.output)
