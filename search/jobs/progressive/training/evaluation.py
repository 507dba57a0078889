"""Held-out metrics of a stage on fixed batches, and the cost of one training step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.training.batches import GrowthBatch
from search.jobs.progressive.training.growing_model import GrowingRack
from search.training.devices import autocast
from search.training.packing import Pack
from search.training.state import TrainState
from tasks import IGNORED


class StageEvaluation:
    """What `train` takes as `evaluate`: loss (nats) and accuracy over all asked positions of fixed held-out batches, each [1].

    What stands at the frontier is computed once: the trunk does not run again in a stage, not even here.
    """

    def __init__(self, batches: Sequence[GrowthBatch], spec: ProgressiveSpec) -> None:
        self.batches, self.spec = batches, spec
        self._hidden: list[Tensor | None] = [None] * len(batches)

    def __call__(self, pack: Pack, running: Sequence[TrainState]) -> dict[str, Tensor]:
        """The row of the member, whose model is growing."""
        del pack
        (model,) = (member.model for member in running)
        assert isinstance(model, GrowingRack)  # what the job makes
        return self.score(model)

    def keep_frontier(self, model: GrowingRack) -> None:
        """Compute what stands at the frontier of each batch, for all evaluations to come."""
        if model.frontier:
            with torch.no_grad(), autocast(self.batches[0].inputs.device, self.spec.train.scores_in):
                self._hidden = [model.below(batch, model.frontier) for batch in self.batches]

    @torch.no_grad()
    def score(self, model: GrowingRack) -> dict[str, Tensor]:
        """Loss and accuracy of the model as it is, in evaluation mode."""
        was_training = model.training
        model.eval()
        totals = torch.zeros(3, dtype=torch.float64)
        for batch, hidden in zip(self.batches, self._hidden, strict=True):
            with autocast(batch.inputs.device, self.spec.train.scores_in):
                logits = model(batch, hidden).float().flatten(0, 1)
            targets = batch.targets.flatten()
            loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            is_correct = (logits.max(-1).indices == targets).sum()
            totals += torch.stack([loss.double(), is_correct.double(), (targets != IGNORED).sum().double()]).cpu()
        model.train(was_training)
        loss, n_correct, n_supervised = totals
        return {"loss": (loss / n_supervised).reshape(1), "accuracy": (n_correct / n_supervised).reshape(1)}


def n_trained(model: nn.Module) -> int:
    """How many numbers train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
