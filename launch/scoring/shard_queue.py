"""ShardQueue: the actor from which evaluation workers take shards of a round of placements."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the queue is a process of its own, which would wait for torch
    from models import Placement


class ScoringShard(NamedTuple):
    """Placements that share prefixes, for one worker to score on a range of the batches. Numbers count from the first round."""

    number: int
    round: int
    placements: list[Placement]
    batches: range


class ShardQueue:
    """Hands each trial one shard; those of trials that fail come back. Its methods run on one event loop."""

    def __init__(self, supplies: Any) -> None:
        """Keep what every worker needs once: an object reference in a list, for else Ray would hand over the object."""
        self._supplies = supplies
        self._shards: deque[ScoringShard] = deque()
        self._waiting: dict[str, object] = {}
        self._held: dict[str, ScoringShard] = {}
        self._n_failures: Counter[int] = Counter()
        self._has_changed = asyncio.Condition()
        self._is_closed = False

    async def supplies(self) -> Any:
        """What every worker needs once."""
        return self._supplies

    async def add(self, shards: Iterable[ScoringShard]) -> None:
        """Put the shards of a round on the queue; those of the rounds before are done."""
        async with self._has_changed:
            self._held.clear()
            self._shards.clear()
            self._shards.extend(shards)
            self._has_changed.notify_all()

    async def take(self, trial: str) -> ScoringShard | None:
        """A shard for the trial, as soon as there is one; None once the queue is closed."""
        place = self._waiting[trial] = object()

        def is_gone() -> bool:
            # A worker that died while it waited must not be given anything: nobody would ever score it.
            return self._is_closed or self._waiting.get(trial) is not place

        async with self._has_changed:
            await self._has_changed.wait_for(lambda: is_gone() or self._shards)
            if is_gone():
                return None
            self._held[trial] = self._shards.popleft()
            return self._held[trial]

    async def done(self, number: int) -> None:
        """A shard's numbers have arrived: nobody is to score it again, though the trial that did may still fail."""
        self._held = {trial: shard for trial, shard in self._held.items() if shard.number != number}
        self._shards = deque(shard for shard in self._shards if shard.number != number)

    async def failed(self, trial: str) -> tuple[ScoringShard | None, int]:
        """Take back what a trial holds whose worker raised or died, for whoever is free; what it was, and how often it failed."""
        self._waiting.pop(trial, None)
        shard = self._held.pop(trial, None)
        if shard is None:
            return None, 0
        self._n_failures[shard.number] += 1
        async with self._has_changed:
            self._shards.appendleft(shard)
            self._has_changed.notify_all()
        return shard, self._n_failures[shard.number]

    async def close(self) -> None:
        """Let all go home."""
        async with self._has_changed:
            self._is_closed = True
            self._has_changed.notify_all()
