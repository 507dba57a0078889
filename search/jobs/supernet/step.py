"""One training step of a supernet: its placements, its losses, its gradients."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from models import Supernet
from models.rack.reports import collecting
from models.spec.placement import Placement, placement_text
from search.jobs.supernet.outputs import Outputs, outputs_of, pieces, total
from search.jobs.supernet.spec import SupernetSpec
from search.runs.report import Say
from search.samplers.shared.sampler import placements_of_step
from search.training.batches import asks_anything
from search.training.devices import autocast, resolve_device
from search.training.metrics import weighted_loss
from search.training.mixture import WeightedBatch
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.state import TrainState

ONLY: tuple[Placement, ...] = ((),)
"""What is trained of a rack without choices."""


class Teaching(Protocol):
    """What looks at a batch before the student does, and says how far the student is from what it has seen there."""

    def look(self, batch: WeightedBatch, *, step: int, first: int) -> Any:
        """What there is to see in a part of a step's batch, which begins with the row `first` of this rank's."""

    @property
    def compares_hidden(self) -> bool:
        """Whether it compares what layers give."""

    def mix(self, cross_entropy: Tensor, logits: Tensor, seen: Any, positions: slice, weights: Tensor) -> Tensor:
        """The loss of some positions of the batch, with logits [positions, vocab_size]: sums by `weights` [positions]."""

    def beside(self, student: Outputs, seen: Any, weights: Tensor) -> Tensor | None:
        """What is added to the loss of the whole batch, if anything: a sum by `weights` [rows, time]."""


class SupernetStep:
    """What `train` takes as `gradients`: leaves those of one step, summed over the ranks, in the active parameters.

    The placements are a function of (seed, step), so all ranks and micro-batches have the same. Parameters that none of them
    uses have no gradient. Where the spec asks for `debug`, `say` is told of every draw.

    Losses that parts report are those of a micro-batch on one rank, and count by its rows: means over positions add up to that
    of the whole batch, but experts are balanced among the positions that are computed together.
    """

    def __init__(self, spec: SupernetSpec, ranks: Ranks, teacher: Teaching | None = None, say: Say = lambda _: None) -> None:
        self.spec, self.ranks, self.teacher, self.say = spec, ranks, teacher, say
        self.slots, self.device = spec.rack.slots(), resolve_device(spec.train.device)
        self.sampler = spec.make_sampler()
        self._is_sharded = spec.parallel == "fsdp" and ranks.n_ranks > 1  # then a head has its weights in a whole pass alone

    def __call__(self, pack: Pack, running: Sequence[TrainState], step: int) -> Tensor:
        """The loss [1] of the whole batch, averaged over the step's placements; what parts report is not counted in."""
        del pack
        (member,), spec = running, self.spec
        placements = ONLY
        if self.sampler is not None:
            placements = placements_of_step(self.sampler, spec.seed, step, spec.placements_per_step)
        if spec.debug:
            self.ranks.check_same(f"step {step}: {' | '.join(map(placement_text, placements))}")
            self._tell(step, placements)
        model, batch = member.model, member.batches[step]
        assert isinstance(model, Supernet) and isinstance(batch, WeightedBatch)  # noqa: PT018 - what the job makes
        loss = torch.zeros(1, device=batch.inputs.device)
        if asks_anything(member.batches, step, batch.targets, self.ranks):
            first = 0
            for micro_batch in _micro_batches(batch, spec.accumulate):
                loss += self.backward(model, micro_batch, placements, step=step, first=first)
                first += len(micro_batch.inputs)
        else:
            member.unsupervised.append(step)
            loss.fill_(math.nan)
        self.ranks.exchange(model.parameters())
        return self.ranks.total(loss)

    def _tell(self, step: int, placements: Sequence[Placement]) -> None:
        """What was drawn for every layer, a line a placement; steps are counted from 1, as in all that is told."""
        for number, placement in enumerate(placements if self.slots else (), start=1):
            which = f", placement {number} of {len(placements)}" if len(placements) > 1 else ""
            drawn = ", ".join(f"{slot} {name}" for slot, name in zip(self.slots, placement, strict=True))
            self.say(f"step {step + 1}{which}: {drawn}")

    def backward(
        self, model: Supernet, batch: WeightedBatch, placements: Sequence[Placement], *, step: int, first: int
    ) -> Tensor:
        """Add up the gradients of the placements on a micro-batch, from the row `first` on; its part of the loss, detached."""
        train, device = self.spec.train, batch.inputs.device
        seen, losses, share = None, [], len(batch.inputs) / self.spec.data.batch_size
        n_positions = batch.inputs.numel()
        positions = [slice(0, n_positions)] if self._is_sharded else pieces(model, n_positions, self.device)
        with_hidden = self.teacher is not None and self.teacher.compares_hidden
        if self.teacher is not None:
            with autocast(device, train.scores_in):
                seen = self.teacher.look(batch, step=step, first=first)
        for placement in placements:
            model.activate(placement)
            with autocast(device, train.precision), collecting() as found:
                outputs = outputs_of(model, batch.inputs, is_read_out=len(positions) == 1, with_hidden=with_hidden)
            loss = total(partial(self._loss, outputs, batch, seen), positions)
            if self.teacher is not None and (beside := self.teacher.beside(outputs, seen, batch.weights)) is not None:
                loss = loss + beside
            loss = loss / len(placements)
            whole = found.added_to(loss, share=share / len(placements))
            if whole.requires_grad:  # else all that was drawn is frozen
                whole.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _loss(self, outputs: Outputs, batch: WeightedBatch, seen: Any, positions: slice) -> Tensor:
        """Of some positions of a batch."""
        train, device = self.spec.train, batch.inputs.device
        with autocast(device, train.precision):
            logits = outputs.logits(positions)
        targets, weights = batch.targets.flatten()[positions], batch.weights.flatten()[positions]
        loss = weighted_loss(logits, targets, weights)
        if self.teacher is None:
            return loss
        with autocast(device, train.scores_in):  # the teacher's head may be read here
            return self.teacher.mix(loss, logits, seen, positions, weights)


def _micro_batches(batch: WeightedBatch, n: int) -> Iterator[WeightedBatch]:
    """The rows in n parts as equal as may be; the weights refer to the whole batch, so their losses add up to its loss."""
    return map(WeightedBatch, *(tensor.tensor_split(n) for tensor in batch))
