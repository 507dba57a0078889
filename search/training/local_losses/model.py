"""LocalUnits: a rack cut into units with an exit (head) for each."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from configs.local_losses import LocalLossSpec
from models import Rack
from models.linears.adapters import Adapter
from models.rack.modules import Stack
from search.training.local_losses.units import Unit, UnitKind, through, units_of


class Translator(nn.Module):
    """x + up(down(x)) + bias: the identity at the start."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        self.change = Adapter(d_model, d_model, rank=rank, alpha=rank)
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[batch, time, d_model] -> same, each position by itself."""
        del attention_mask
        x = x.to(self.bias.dtype)
        return x + self.change(x) + self.bias


class LocalUnits(nn.Module):
    """A rack, cut into units, and `extras`: what exits have of their own, trained and saved beside it. Called, it is the rack.

    `rack` is all there is to keep when the training is over.

    Args:
        rack: a model, without choices; its parameters stay its own.
        spec: how exits are read.
        unit: what a unit is.
        seed: of the extras' weights.
    """

    def __init__(self, rack: Rack, spec: LocalLossSpec, *, unit: UnitKind, seed: int = 0) -> None:
        super().__init__()
        self.rack, self.spec, self.units = rack, spec, units_of(rack, unit)
        weight = rack.embedding.weight
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made = [self._extra(each, weight.shape[1]) for each in self.units[:-1]]
        self.extras = nn.ModuleList(extra.to(weight.device) for extra in made if extra is not None)

    def forward(self, *inputs: Tensor, **options: Any) -> Tensor:
        """What the rack makes of it."""
        logits: Tensor = self.rack(*inputs, **options)
        return logits

    def exit(self, index: int, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What is read behind a unit: its output [batch, time, d_model] -> logits [batch, time, vocab_size]."""
        with standing_still(self._still(index) if torch.is_grad_enabled() else ()):
            if self.spec.head == "tail":
                x = through(self.units[index].tail, x, attention_mask)
            elif index < len(self.extras):
                x = through([self.extras[index]], x, attention_mask)
            logits: Tensor = self.rack.head(x)
        return logits

    def _extra(self, unit: Unit, d_model: int) -> nn.Module | None:
        if self.spec.head == "tuned":
            return Translator(d_model, min(self.spec.rank, d_model))
        if self.spec.head == "aux_block":
            last = unit.parts[-1]
            return deepcopy(last.blocks[-1] if isinstance(last, Stack) else last)
        return None

    def _still(self, index: int) -> Iterator[nn.Parameter]:
        """What does not learn from a unit's loss, of all that its exit goes through."""
        if self.spec.head == "tail" and not self.spec.tail_learns:
            for part in self.units[index].tail:
                yield from part.parameters()
        if self.spec.head_learns_from == "last" and index < len(self.units) - 1:
            yield from self.rack.head.parameters()
        elif self.spec.schedule == "sequential" and index:
            # A tied weight is the embedding's: it would move what all units before are built on.
            yield from (each for each in self.rack.head.parameters() if each is self.rack.embedding.weight)


@contextmanager
def standing_still(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """What is computed in the block passes gradients on to its inputs, but gives none to the parameters."""
    held = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
