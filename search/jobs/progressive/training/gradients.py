"""One training step of a stage: its loss on what the cache holds, or on the whole rack, and its gradients."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.rack.reports import collecting
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.training.batches import GrowthBatch
from search.jobs.progressive.training.growing_model import GrowingRack
from search.jobs.supernet.outputs import Outputs, pieces, total
from search.training.batches import asks_anything
from search.training.devices import autocast
from search.training.metrics import weighted_loss
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.state import TrainState

FIRST_LOSS_SCALE = 2.0**16
STEPS_BEFORE_DOUBLING = 2000

Hidden = Callable[[GrowthBatch], Tensor | None]
"""What stands at a stage's frontier for a batch; None where it is computed with the rest."""


class GrowthStep:
    """What `train` takes as `gradients`: those of one step, summed over the ranks, in what trains.

    With `denoise_mse`, a stack that is prepended learns to turn the embedding of a corrupted sample into that of the clean one,
    which is what the stacks above expect: nothing goes backward through them.

    Where a stack computes in float16 the loss is scaled, so that small gradients do not vanish: halved when a gradient is not
    finite (that step then changes nothing), doubled after a while without one (Micikevicius et al. 2018, arXiv 1710.03740). The
    scale is the member's.
    """

    def __init__(self, spec: ProgressiveSpec, ranks: Ranks, hidden: Hidden, *, denoises: bool, scales_loss: bool) -> None:
        self.spec, self.ranks, self.hidden = spec, ranks, hidden
        self._denoises, self._scales_loss = denoises, scales_loss

    def __call__(self, pack: Pack, running: Sequence[TrainState], step: int) -> Tensor:
        """The loss [1] of the whole batch; what parts report is not counted in."""
        del pack
        (member,) = running
        model, batch = member.model, member.batches[step]
        assert isinstance(model, GrowingRack) and isinstance(batch, GrowthBatch)  # noqa: PT018 - what the job makes
        # Where a stack learns to denoise, a sample without a mask is something to learn from too.
        if not (self._denoises or asks_anything(member.batches, step, batch.targets, self.ranks)):
            member.unsupervised.append(step)
            self.ranks.exchange(())
            return batch.weights.new_full((1,), math.nan)
        with autocast(batch.inputs.device, self.spec.train.precision), collecting() as found:
            loss = self._loss(model, batch)
        scale = (member.loss_scale or FIRST_LOSS_SCALE) if self._scales_loss else 1.0
        (found.added_to(loss, share=len(batch.inputs) / self.spec.data.batch_size) * scale).backward()
        self.ranks.exchange(model.parameters())
        if self._scales_loss:
            self._unscale(member, scale)
        return self.ranks.total(loss.detach().reshape(1))

    def _loss(self, model: GrowingRack, batch: GrowthBatch) -> Tensor:
        if self._denoises:
            return denoising_distances(model, batch).sum() / self.spec.data.batch_size
        positions = pieces(model.rack, batch.inputs.numel(), batch.inputs.device)
        if len(positions) == 1:
            return weighted_loss(model(batch, self.hidden(batch)), batch.targets, batch.weights)
        outputs = Outputs(model.last(batch, self.hidden(batch)), model.rack.head)
        targets, weights = batch.targets.flatten(), batch.weights.flatten()
        return total(lambda piece: weighted_loss(outputs.logits(piece), targets[piece], weights[piece]), positions)

    def _unscale(self, member: TrainState, scale: float) -> None:
        gradients = [parameter.grad for parameter in member.model.parameters() if parameter.grad is not None]
        is_finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        if is_finite:
            for gradient in gradients:
                gradient.div_(scale)
        else:
            for parameter in member.model.parameters():
                parameter.grad = None
        n_good = member.n_finite_steps + 1 if is_finite else 0
        doubles = n_good == STEPS_BEFORE_DOUBLING
        member.loss_scale = scale * (2.0 if doubles else 1.0 if is_finite else 0.5)
        member.n_finite_steps = 0 if doubles else n_good


def denoising_distances(model: GrowingRack, batch: GrowthBatch) -> Tensor:
    """Mean squared distance of the first stack's output from the embedding of the clean sample, pads left out: [rows]."""
    rack = model.rack
    with torch.no_grad():
        clean = rack.embed(batch.clean, batch.time_steps, model.attention_mask(batch))
    hidden = rack.run(model.below(batch, 0), stop=1, attention_mask=model.attention_mask(batch))
    distances = F.mse_loss(hidden.float(), clean.float(), reduction="none").mean(-1)
    attention_mask = torch.ones_like(distances) if batch.attention_mask is None else batch.attention_mask.to(distances.dtype)
    return (distances * attention_mask).sum(1) / attention_mask.sum(1).clamp(min=1)
