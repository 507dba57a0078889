"""GrowingRack: a rack in a stage of growth, run from the lowest stack that trains."""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from models import Rack
from models.rack.modules import reads_attention_mask
from search.jobs.progressive.training.batches import GrowthBatch
from search.training.local_losses.model import LocalUnits
from tasks.samples.samples import Samples


class GrowingRack(nn.Module):
    """The rack of a stage. Parts of which nothing trains are in evaluation mode, whatever mode the rest is in: no dropout there.

    `frontier` is the number of stacks from the embedding on, embedding included, of which nothing trains: what they compute is
    the same at every step, and can be cached. 0 if the embedding trains. `uses_attention_mask` tells mixers of pads: see
    `needs_attention_mask`. `units` cut the rack into parts that learn from losses of their own, if they do. `n_trunk_runs`
    counts, where there is a trunk, how often it has run in training.
    """

    def __init__(self, rack: Rack, *, uses_attention_mask: bool, has_trunk: bool = False) -> None:
        super().__init__()
        self.rack, self.uses_attention_mask, self.has_trunk = rack, uses_attention_mask, has_trunk
        self.frontier = find_frontier(rack)
        self.n_trunk_runs = 0
        self.units: LocalUnits | None = None

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Training mode for what trains."""
        super().train(mode)
        for part in (self.rack.embedding, *self.rack.stacks, self.rack.head):
            if not _trains(part):
                part.eval()
        return self

    def forward(self, batch: GrowthBatch, hidden: Tensor | None = None) -> Tensor:
        """Logits [rows, time, vocab_size]; `hidden` is what stands at the frontier, where it is known."""
        return self.rack.read_out(self.last(batch, hidden), self.attention_mask(batch))

    def last(self, batch: GrowthBatch, hidden: Tensor | None = None) -> Tensor:
        """What the head reads: [rows, time, d_model]."""
        if hidden is None:
            self.n_trunk_runs += self.has_trunk and self.training
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frontier):
                hidden = self.below(batch, self.frontier)
        return self.rack.run(hidden, start=self.frontier, attention_mask=self.attention_mask(batch))

    def below(self, batch: GrowthBatch, stop: int) -> Tensor:
        """What embedding and the stacks before a stack make of a batch: [rows, time, d_model]."""
        attention_mask = self.attention_mask(batch)
        time_steps = None if self.rack.time_embedding is None else batch.time_steps
        embedded = self.rack.embed(batch.inputs, time_steps, attention_mask)
        return self.rack.run(embedded, stop=stop, attention_mask=attention_mask)

    def attention_mask(self, batch: GrowthBatch) -> Tensor | None:
        """What mixers are told of pads."""
        return batch.attention_mask if self.uses_attention_mask else None


def needs_attention_mask(rack: Rack, samples: Samples) -> bool:
    """Whether pads would count: something looks ahead or tells of all positions together, or pads stand before tokens.

    Else pads are behind everything that is asked, and without a mask nothing has to be put in another order.
    """
    if samples.sequences("train", np.arange(1)).attention_mask is None:
        return False
    return any(map(reads_attention_mask, rack.modules())) or samples.has_pads_before_tokens


def is_causal(stack: nn.Module) -> bool:
    """Whether no mixer of a stack looks ahead."""
    return all(getattr(part, "causal", True) for part in stack.modules())


def find_frontier(rack: Rack) -> int:
    """How many stacks from the embedding on stand still with it."""
    ends = [rack.embedding, *([] if rack.time_embedding is None else [rack.time_embedding])]
    if any(map(_trains, ends)):
        return 0
    moving = (position for position, stack in enumerate(rack.stacks) if _trains(stack))
    return next(moving, len(rack.stacks))


def _trains(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
