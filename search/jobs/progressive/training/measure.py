"""Measures a stage while it trains (step times, memory, cache counts), summed over processes and restarts."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from search.profiling.saved_bytes import SavedBytes
from search.training.loop import Gradients
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.state import TrainState

CacheCounts = dict[str, int]


class Measured:
    """What `train` takes as `gradients`: another one's, of whose first step it counts what is kept for the backward pass.

    `counts` tells what has been counted in this process since it was made; the member keeps it, added to what was counted before.
    """

    def __init__(self, gradients: Gradients, member: TrainState, counts: Callable[[], CacheCounts]) -> None:
        self._gradients, self._member, self._counts = gradients, member, counts
        self._before: CacheCounts | None = None
        self._ticks = [time.perf_counter()]

    def __call__(self, pack: Pack, running: Sequence[TrainState], step: int) -> Tensor:
        """The loss [1] that the other one returns."""
        member = self._member
        if self._before is None:  # what a checkpoint holds is known now
            self._before = dict(member.cache_counts)
        if member.saved_bytes is not None:
            loss = self._gradients(pack, running, step)
        else:
            with SavedBytes(member.model) as saved:
                loss = self._gradients(pack, running, step)
            if step not in member.unsupervised:  # nothing went backward there
                member.saved_bytes = saved.peak
        member.cache_counts = {name: self._before.get(name, 0) + n for name, n in self._counts().items()}
        return loss

    def tick(self) -> None:
        """A step is done."""
        self._ticks.append(time.perf_counter())

    def totals(self, ranks: Ranks) -> CacheCounts:
        """What was counted, summed over the ranks."""
        counts = self._member.cache_counts
        device = next(self._member.model.parameters()).device
        summed = ranks.total(torch.tensor([float(n) for n in counts.values()], dtype=torch.float64, device=device))
        return {name: int(n) for name, n in zip(counts, summed.tolist(), strict=True)}

    @property
    def step_ms(self) -> float | None:
        """The median time of this process's steps, in milliseconds."""
        times = [1000 * (after - before) for before, after in pairwise(self._ticks)]
        return round(statistics.median(times), 3) if times else None
