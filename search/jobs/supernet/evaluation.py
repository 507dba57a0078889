"""Held-out metrics of a supernet during training: of the main placement and of fixed random ones."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice

import torch
from torch import Tensor

from models import Supernet
from models.spec.placement import Placement
from search.jobs.supernet.spec import SupernetSpec
from search.samplers.shared.sampler import generator, placements_of_step
from search.training import metrics
from search.training.batches import Batch
from search.training.devices import autocast
from search.training.packing import Pack
from search.training.state import TrainState

Metrics = dict[str, Tensor]


class SupernetEvaluation:
    """What `train` takes as `evaluate`: the metrics of fixed batches, each [1], averaged over the tasks by their shares.

    `loss` and `accuracy` are of the main placement, `loss.<task>` and `accuracy.<task>` of one task; `sampled_loss` and
    `sampled_accuracy` are the mean over the fixed draws. What parts of the main placement report is there by its own name.
    """

    def __init__(self, batches: Mapping[str, Sequence[Batch]], shares: Mapping[str, float], sampled: Sequence[Placement]) -> None:
        self.batches, self.shares, self.sampled = batches, shares, sampled

    def __call__(self, pack: Pack, running: Sequence[TrainState]) -> Metrics:
        """The row of the member, whose model is a supernet with its main placement active."""
        (model,) = (member.model for member in running)
        assert isinstance(model, Supernet)  # what the job makes
        found = self.score(pack)
        row = self._mean(found)
        row |= {f"{name}.{task}": values[name] for task, values in found.items() for name in ("loss", "accuracy")}
        drawn = []
        for placement in self.sampled:
            model.activate(placement)
            drawn.append(self._mean(self.score(pack)))
        for name in ("loss", "accuracy") if drawn else ():
            row[f"sampled_{name}"] = torch.stack([each[name] for each in drawn]).mean(0)
        return row

    def score(self, forward: Callable[[Tensor], Tensor]) -> dict[str, Metrics]:
        """The metrics of each task for what is active now; `forward` gives logits [1, rows, time, vocab_size]."""
        return {task: metrics.evaluate(forward, batches) for task, batches in self.batches.items()}

    def losses_by_mixer(self, model: Supernet, spec: SupernetSpec) -> dict[str, dict[str, float]]:
        """The loss of each task with one name in every slot that offers it, for each name: how good a start each has."""
        device = next(model.parameters()).device
        losses = {}
        model.eval()
        for name in dict.fromkeys(name for slot in model.slots for name in slot.names):
            model.activate(f"all:{name}")
            with torch.no_grad(), autocast(device, spec.train.scores_in):
                found = self.score(Pack([model]))
            losses[name] = {task: float(values["loss"]) for task, values in found.items()}
        return losses

    def _mean(self, found: Mapping[str, Metrics]) -> Metrics:
        return {name: sum(self.shares[task] * found[task][name] for task in found) for name in next(iter(found.values()))}  # type: ignore[misc]


def sampled_placements(spec: SupernetSpec) -> list[Placement]:
    """Fixed draws to look at while training, apart from those that it trains on."""
    sampler = spec.make_sampler()
    if sampler is None:
        return []
    seed = int(generator(spec.seed, "evaluation").integers(2**31))
    drawn = (placement for step in count() for placement in placements_of_step(sampler, seed, step))
    return list(islice(drawn, spec.n_eval_placements))
