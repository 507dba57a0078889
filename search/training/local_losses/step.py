"""One training step of local losses: each unit's loss and gradient, with none passing between units."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from configs import ConfigError
from models.rack.reports import collecting
from search.training.batches import asks_anything
from search.training.devices import autocast
from search.training.local_losses.model import LocalUnits
from search.training.metrics import weighted_loss
from search.training.mixture import WeightedBatch
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.spec import TrainPrecision
from search.training.state import TrainState
from tasks import IGNORED


class _LossBatch(NamedTuple):
    """A step's batch, the share that it is of all ranks' rows, and what parts are told beside the tokens."""

    batch: WeightedBatch
    share: float
    time_steps: Tensor | None
    attention_mask: Tensor | None


class LocalLosses:
    """What `train` takes as `gradients`: leaves those of every unit's own loss, summed over the ranks.

    A unit goes backward before the next one goes forward, so that no more than one unit's graph (two units' where losses overlap)
    is in memory, however deep the rack is. Parameters that learn from several losses, such as the head's, have the sum of their
    gradients.

    The one member's model is `model`, or holds it as a part of itself. Its batches have `inputs` and `targets`, and may have
    `weights`, in which all of it, over all ranks, counts (without: the mean over the asked positions of all ranks), `time_steps`
    and `attention_mask`, which is told to mixers where `uses_attention_mask`.

    Raises:
        ConfigError: where units train one after another, and there are fewer of the `n_steps` than units.
    """

    def __init__(
        self,
        model: LocalUnits,
        *,
        n_steps: int,
        precision: TrainPrecision = "auto",
        ranks: Ranks | None = None,
        uses_attention_mask: bool = True,
    ) -> None:
        n_units = len(model.units)
        if model.spec.schedule == "sequential" and n_steps < n_units:
            raise ConfigError(f"schedule sequential trains {n_units} units one after another: n_steps = {n_steps} is too few")
        self.model, self.n_steps, self.precision = model, n_steps, precision
        self.ranks, self.uses_attention_mask = ranks or Ranks(), uses_attention_mask

    def __call__(self, pack: Pack, running: Sequence[TrainState], step: int) -> Tensor:
        """The loss [1] of the last exit that the step went through; what parts report, and transport, are not counted in."""
        del pack
        (member,) = running
        loss_batch = self._loss_batch(member.batches[step])
        if not asks_anything(member.batches, step, loss_batch.batch.targets, self.ranks):
            member.unsupervised.append(step)
            self.ranks.exchange(())
            return loss_batch.batch.inputs.new_full((1,), math.nan, dtype=torch.float32)
        if self.model.spec.schedule == "sequential":
            loss = self._one_unit(loss_batch, self.unit_of(step))
        else:
            loss = self._all_units(loss_batch, overlap=self.model.spec.schedule == "overlap")
        self.ranks.exchange(member.model.parameters())
        return self.ranks.total(loss.reshape(1))

    def unit_of(self, step: int) -> int:
        """The unit that trains at a step where one does after another: each has as many of the steps, up to one."""
        return step * len(self.model.units) // self.n_steps

    def _all_units(self, loss_batch: _LossBatch, *, overlap: bool) -> Tensor:
        x, below = self._embedded(loss_batch), None
        for index in range(len(self.model.units)):
            y, loss, total = self._forward(index, x, loss_batch)
            # Overlapping, the next loss will come through this unit once more, up to its input.
            _backward(total, keeps_graph=overlap)
            del total  # and with it what the exit keeps
            if below is not None and x.grad is not None:
                _backward(below, x.grad)
            below, x = y, y.detach().requires_grad_(overlap)
        return loss

    def _one_unit(self, loss_batch: _LossBatch, current: int) -> Tensor:
        units = self.model.units
        if current:
            self.model.rack.embedding.eval()
        for unit in (*units[:current], units[current]):  # a shared block stands in both, and trains
            for part in unit.parts:
                part.train(unit is units[current])
        x = self._embedded(loss_batch)
        with torch.no_grad(), autocast(x.device, self.precision):
            for unit in units[:current]:
                x = unit(x, loss_batch.attention_mask)
        _, loss, total = self._forward(current, x, loss_batch)
        _backward(total)
        return loss

    def _embedded(self, loss_batch: _LossBatch) -> Tensor:
        with autocast(loss_batch.batch.inputs.device, self.precision):
            return self.model.rack.embed(loss_batch.batch.inputs, loss_batch.time_steps, loss_batch.attention_mask)

    def _forward(self, index: int, x: Tensor, loss_batch: _LossBatch) -> tuple[Tensor, Tensor, Tensor]:
        """A unit's output, its loss detached, and all that goes backward from it."""
        with autocast(x.device, self.precision), collecting() as found:
            y = self.model.units[index](x, loss_batch.attention_mask)
            logits = self.model.exit(index, y, loss_batch.attention_mask)
            loss = weighted_loss(logits, loss_batch.batch.targets, loss_batch.batch.weights)
        total = found.added_to(loss, share=loss_batch.share)
        if self.model.spec.transport:
            total = total + self.model.spec.transport * loss_batch.share * _transport(y - x, loss_batch.attention_mask)
        return y, loss.detach(), total

    def _loss_batch(self, batch: Any) -> _LossBatch:
        inputs, targets = batch[:2]
        is_supervised = targets != IGNORED
        n_supervised = is_supervised.sum()
        n_supervised, n_rows = self.ranks.total(torch.stack([n_supervised, torch.full_like(n_supervised, len(inputs))]))
        weights = getattr(batch, "weights", None)
        if weights is None:
            weights = is_supervised / n_supervised.clamp(min=1)
        return _LossBatch(
            WeightedBatch(inputs, targets, weights),
            cast("float", len(inputs) / n_rows),  # on the device: nothing waits for it
            getattr(batch, "time_steps", None),
            getattr(batch, "attention_mask", None) if self.uses_attention_mask else None,
        )


def _backward(tensor: Tensor, gradient: Tensor | None = None, *, keeps_graph: bool = False) -> None:
    if tensor.requires_grad:  # of a frozen unit with a frozen head nothing learns
        tensor.backward(gradient, retain_graph=keeps_graph)


def _transport(change: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean squared length of a change [batch, time, d_model] over the positions of each row, and over rows."""
    squares = change.float().square().sum(-1)
    if attention_mask is None:
        return squares.mean()
    return ((squares * attention_mask).sum(1) / attention_mask.sum(1).clamp(min=1)).mean()
