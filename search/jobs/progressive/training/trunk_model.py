"""FrozenTrunk: the frozen stacks below those that train, as a function of packed input rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models import RackSpec
from search.jobs.progressive.training.batches import GrowthBatch
from search.jobs.progressive.training.growing_model import GrowingRack


class FrozenTrunk(nn.Module):
    """What stands still below the frontier: embedding, time embedding and the first stacks of a rack, the same modules."""

    def __init__(self, model: GrowingRack) -> None:
        super().__init__()
        rack = model.rack
        self.embedding, self.time_embedding = rack.embedding, rack.time_embedding
        self.stacks = nn.ModuleList(list(rack.stacks)[: model.frontier])
        self._rack, self._uses_attention_mask = (
            [rack],
            model.uses_attention_mask,
        )  # in a list: the whole rack is no part of the trunk

    def forward(self, rows: Tensor) -> Tensor:
        """Packed rows (see `pack_rows`) -> [rows, time, d_model]."""
        return self.above(self._embedded(rows), rows, start=0)

    def above(self, hidden: Tensor, rows: Tensor, *, start: int) -> Tensor:
        """The same from what stands at the input of a stack, which an earlier cache may know."""
        (rack,) = self._rack
        n_positions = (rows.shape[1] - 1) // 2
        attention_mask = rows[:, n_positions:-1].bool() if self._uses_attention_mask else None
        return rack.run(hidden, start=start, stop=len(self.stacks), attention_mask=attention_mask)

    def _embedded(self, rows: Tensor) -> Tensor:
        (rack,) = self._rack
        n_positions = (rows.shape[1] - 1) // 2
        return rack.embed(rows[:, :n_positions], None if rack.time_embedding is None else rows[:, -1])


def pack_rows(batch: GrowthBatch) -> Tensor:
    """All that a trunk's output depends on beside its weights: tokens, where there are no pads, time step; [rows, 2 time + 1]."""
    attention_mask = torch.ones_like(batch.inputs) if batch.attention_mask is None else batch.attention_mask.long()
    time_steps = batch.inputs.new_zeros(len(batch.inputs)) if batch.time_steps is None else batch.time_steps
    return torch.cat([batch.inputs, attention_mask, time_steps[:, None]], dim=1)


def architecture(rack: RackSpec, frontier: int) -> dict[str, Any]:
    """What no tensor says of the part of a rack below a frontier: windows, scales, kinds."""
    content = rack.content()
    kept = {name: content.get(name) for name in ("d_model", "residual_dtype", "embedding", "time", "norm")}
    return {**kept, "stacks": content["stacks"][:frontier]}
