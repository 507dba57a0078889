"""Shuffled batches of a data set that lies on the device, as a pure function of the step."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tasks import Examples

Batch = tuple[Tensor, Tensor]


class EpochBatches:
    """`batches[step]` is a batch of the epoch that the step falls in; every epoch has its own order, drawn from (seed, epoch).

    The last batch of an epoch holds what is left. Nothing is kept between steps but the current order, so training resumes at
    any step. `in_order()` goes through the data once, unshuffled, for evaluation.
    """

    def __init__(self, examples: Examples, batch_size: int, *, seed: int, device: torch.device) -> None:
        self.inputs = torch.tensor(examples.inputs, device=device)
        self.targets = torch.tensor(examples.targets, device=device)
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-len(examples) // batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long, device=device)

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # Large odd factors keep the streams of neighbouring seeds and epochs apart; the generator hashes its seed.
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(len(self.inputs), generator=generator)
            if self.inputs.is_cuda:  # from pinned memory the copy does not wait for the device
                order = order.pin_memory()
            self._order = order.to(self.inputs.device, non_blocking=True)
            self._epoch = epoch
        chosen = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.inputs[chosen], self.targets[chosen]

    def in_order(self) -> Iterator[Batch]:
        """All batches once, in the order of the data."""
        return zip(self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True)
