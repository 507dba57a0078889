"""Shuffled batches of a data set that lies on the device, as a pure function of the step."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from search.training.ranks import Ranks
from tasks import IGNORED, Examples

Batch = tuple[Tensor, Tensor]


class EpochBatches:
    """`batches[step]` is a batch of the epoch that the step falls in; every epoch has its own order, drawn from (seed, epoch).

    The last batch of an epoch holds what is left. Nothing is kept between steps but the current order, so training resumes at
    any step. `in_order()` goes through the data once, unshuffled, for evaluation.
    """

    def __init__(self, examples: Examples, batch_size: int, *, seed: int, device: torch.device) -> None:
        self.inputs = torch.tensor(examples.inputs, device=device)
        self.targets = torch.tensor(examples.targets, device=device)
        self._asks = torch.from_numpy((examples.targets != IGNORED).any(1))
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-len(examples) // batch_size)
        self._epoch = -1
        self._order = self._order_here = torch.empty(0, dtype=torch.long)

    def __getitem__(self, step: int) -> Batch:
        place = self._place(step)
        chosen = self._order[place]
        return self.inputs[chosen], self.targets[chosen]

    def asks_at(self, step: int) -> bool:
        """Whether the batch of a step has a supervised position; the device is not waited for."""
        place = self._place(step)
        return bool(self._asks[self._order_here[place]].any())

    def _place(self, step: int) -> slice:
        """Where the batch lies in the order of its epoch, which is now drawn."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # Large odd factors keep the streams of neighbouring seeds and epochs apart; the generator hashes its seed.
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(len(self.inputs), generator=generator)
            if self.inputs.is_cuda:  # from pinned memory the copy does not wait for the device
                order = order.pin_memory()
            self._order, self._order_here = order.to(self.inputs.device, non_blocking=True), order
            self._epoch = epoch
        return slice(position * self.batch_size, (position + 1) * self.batch_size)

    def in_order(self) -> Iterator[Batch]:
        """All batches once, in the order of the data."""
        return zip(self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True)


def asks_anything(batches: Any, step: int, targets: Tensor, ranks: Ranks | None = None) -> bool:
    """Whether a step's batch has a supervised position on any rank; batches with `asks_at` are asked, not the device."""
    if hasattr(batches, "asks_at"):
        return bool(batches.asks_at(step))
    n_supervised = (targets != IGNORED).sum()
    return bool(n_supervised if ranks is None else ranks.total(n_supervised))
