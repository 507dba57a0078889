"""Held-out metrics at every exit of a rack that is trained by local losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from search.training.devices import autocast
from search.training.local_losses.model import LocalUnits
from search.training.packing import Pack
from search.training.spec import TrainPrecision
from search.training.state import TrainState
from tasks import IGNORED


class ExitEvaluation:
    """What `train` takes as `evaluate`: loss (nats) and accuracy over all asked positions of fixed batches, each [1].

    `loss` and `accuracy` are the rack's; `loss.<unit>` is that of the exit behind a unit, by the unit's name.
    """

    def __init__(
        self, model: LocalUnits, batches: Sequence[Any], *, precision: TrainPrecision = "auto", uses_attention_mask: bool = True
    ) -> None:
        self.model, self.batches, self.precision, self.uses_attention_mask = model, batches, precision, uses_attention_mask

    def __call__(self, pack: Pack, running: Sequence[TrainState]) -> dict[str, Tensor]:
        """The row of the member, whose model is, or holds, the one that is evaluated."""
        del pack, running
        return self.score()

    @torch.no_grad()
    def score(self) -> dict[str, Tensor]:
        """The same of the model as it is, in the mode that it is in."""
        totals = torch.zeros(len(self.model.units), 3, dtype=torch.float64)
        for batch in self.batches:
            with autocast(batch[0].device, self.precision):
                totals += self._sums(batch).cpu()
        losses, rights = (totals[:, :2] / totals[:, 2:]).T
        names = [f"loss.{unit.name}" for unit in self.model.units]
        return {"loss": losses[-1:], "accuracy": rights[-1:], **dict(zip(names, losses.split(1), strict=True))}

    def _sums(self, batch: Any) -> Tensor:
        """Of each exit, [units, 3]: summed loss, right answers, asked positions."""
        targets = batch[1].flatten()
        attention_mask = getattr(batch, "attention_mask", None) if self.uses_attention_mask else None
        x, rows = self.model.rack.embed(batch[0], getattr(batch, "time_steps", None), attention_mask), []
        n_supervised = (targets != IGNORED).sum()
        for index, unit in enumerate(self.model.units):
            x = unit(x, attention_mask)
            logits = self.model.exit(index, x, attention_mask).float().flatten(0, 1)
            loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            rows.append(torch.stack([loss.double(), (logits.max(-1).indices == targets).sum().double(), n_supervised.double()]))
        return torch.stack(rows)
