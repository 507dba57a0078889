"""FrozenTrunk: the frozen stacks below those that train, as a function of packed input rows."""

from typing import Any

import torch
from torch import Tensor, nn

from models import RackSpec
from search.jobs.progressive.training.batches import GrowthBatch
from search.jobs.progressive.training.growing_model import GrowingRack


class FrozenTrunk:
    """What stands still below the frontier, as a function of packed rows.

    `parts` are the modules that it runs, under their names in the rack: embedding, time embedding and the first stacks.
    """

    def __init__(self, model: GrowingRack) -> None:
        self._rack, self.n_stacks, self._uses_attention_mask = model.rack, model.frontier, model.uses_attention_mask
        stacks = nn.ModuleList(list(model.rack.stacks)[: model.frontier])
        named = {"embedding": model.rack.embedding, "time_embedding": model.rack.time_embedding, "stacks": stacks}
        self.parts = nn.ModuleDict({name: part for name, part in named.items() if part is not None})

    def __call__(self, rows: Tensor) -> Tensor:
        """Packed rows (see `pack_rows`) -> [rows, time, d_model]."""
        return self.above(self._embedded(rows), rows, start=0)

    def above(self, hidden: Tensor, rows: Tensor, *, start: int) -> Tensor:
        """The same from what stands at the input of a stack, which an earlier cache may know."""
        return self._rack.run(hidden, start=start, stop=self.n_stacks, attention_mask=self._attention_mask(rows))

    def _embedded(self, rows: Tensor) -> Tensor:
        time_steps = None if self._rack.time_embedding is None else rows[:, -1]
        return self._rack.embed(rows[:, : (rows.shape[1] - 1) // 2], time_steps, self._attention_mask(rows))

    def _attention_mask(self, rows: Tensor) -> Tensor | None:
        return rows[:, (rows.shape[1] - 1) // 2 : -1].bool() if self._uses_attention_mask else None


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
