"""TrunkCache: the activation cache of a stage, filled with exactly the rows that training will read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor

from configs import ConfigError
from configs.records import Row
from models import RackSpec
from search.activations.cache import ActivationCache
from search.activations.cache import RowBatch as Rows
from search.activations.choice import Decision, KeptMode, Limits, Reuse, choose_cache_mode
from search.activations.key import CacheKey
from search.activations.previous_cache import PreviousCache
from search.activations.rates import measured_rates
from search.activations.rows import ComputeRows
from search.activations.trunk import Trunk, has_tensors_of
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.training.batches import GrowthBatch, GrowthBatches
from search.jobs.progressive.training.growing_model import GrowingRack
from search.jobs.progressive.training.trunk_model import FrozenTrunk, architecture, pack_rows
from search.training.devices import autocast
from search.training.ranks import Ranks

FILL_ROWS = 64
"""Rows that are asked for at once when a cache is filled."""
GPU_ROWS = 32
"""Rows of a forward pass of the trunk on a GPU; on a CPU it is one, whose bits no batch can change."""
MEASURED_ROWS = 8
SIGN_OF_LIFE_SECONDS = 60.0
"""How often those who wait for files hear that these are still being written: they give up after half an hour of silence."""


class TrunkCache:
    """The hidden states at the frontier of a stage, for the batches of its training.

    Made on all ranks at once; where they share files, the main one fills them while the others wait.

    Args:
        spec: the run.
        model: the rack of the stage; what is below its frontier is the trunk.
        rack: its spec.
        batches: what is asked for.
        folder: where files may lie, beside those of other stages.
        n_steps: of the stage: it is filled with what they come to.
        ranks: the processes that train together.
        previous: that of the stage before, from which this one is filled by the new part of the trunk alone, where that can be.

    Raises:
        ConfigError: if it would be larger than `growth.cache_bytes`, or a folder holds something else.
    """

    def __init__(
        self,
        spec: ProgressiveSpec,
        model: GrowingRack,
        rack: RackSpec,
        *,
        batches: GrowthBatches,
        folder: Path,
        n_steps: int,
        ranks: Ranks,
        previous: TrunkCache | None = None,
    ) -> None:
        self.batches, self.below, self._ranks = batches, FrozenTrunk(model), ranks
        self.requested = batches.requested(n_steps)
        self.n_rows = sum(map(len, self.requested.values()))
        self._precision = spec.train.precision
        self.trunk = Trunk(self.below.parts, self._forward, rows_per_forward=GPU_ROWS if batches.device.type == "cuda" else 1)
        self.key = CacheKey(
            trunk_hash=self.trunk.hash,
            architecture={**architecture(rack, model.frontier), "uses_attention_mask": model.uses_attention_mask},
            corruption=batches.corruption(),
            data=batches.fingerprint(),
            precision=f"{batches.device.type} {self._precision}",
            dtype="bfloat16" if rack.residual_dtype == "bfloat16" else "float32",
            time=batches.samples.seq_len,
            d_model=rack.d_model,
            rows_per_forward=self.trunk.rows_per_forward,
        )
        limits = Limits(memory_bytes=spec.growth.cache_bytes, disk_bytes=spec.growth.cache_bytes)
        if spec.growth.cache_mode == "auto":
            self.decision = self._decide(limits, n_steps * batches.batch_size / self.n_rows, folder)
        else:
            self.decision = Decision(spec.growth.cache_mode, "asked for")
        self.mode = self.decision.mode
        limits.refuse(self.key, self.n_rows, self.mode)
        self.folder = self.key.folder_in(folder) if self.mode == "arrow" else None
        self.cache: ActivationCache
        started = time.monotonic()
        self._fill(None if previous is None else self._previous_cache(previous))
        self._before = self.cache.statistics
        self.fill_seconds, self.n_fill_forwards = time.monotonic() - started, self.trunk.n_forwards

    def start_counting(self) -> None:
        """From here on it is training that asks."""
        self._before = replace(self.cache.statistics)

    def counts(self) -> dict[str, int]:
        """Rows found and not found, and forward passes of the trunk, since counting started."""
        now = self.cache.statistics
        names = {"cache_hits": "hits", "cache_misses": "misses", "trunk_forwards": "forwards"}
        return {name: getattr(now, each) - getattr(self._before, each) for name, each in names.items()}

    def told(self) -> Row:
        """What a stage's row says of its cache."""
        return {
            "cache_mode": self.mode,
            "cache_reason": self.decision.reason,
            "cache_bytes": self.cache.statistics.bytes_held,
            "cache_fill_seconds": round(self.fill_seconds, 3),
            "cache_fill_forwards": self.n_fill_forwards,
        }

    def hidden(self, batch: GrowthBatch) -> Tensor:
        """[rows, time, d_model] of a batch of training."""
        return self.cache.hidden(batch.sample_ids, batch.variants, pack_rows(batch))

    def _forward(self, rows: Tensor) -> Tensor:
        with autocast(rows.device, self._precision):
            return self.below(rows)

    def _previous_cache(self, previous: TrunkCache) -> PreviousCache | None:
        """The rest of the trunk, if another cache is of the same inputs, and of the lower part of this trunk as it is now."""
        alike = ("corruption", "data", "precision", "dtype", "rows_per_forward")
        is_alike = all(getattr(self.key, name) == getattr(previous.key, name) for name in alike)
        is_alike = is_alike and self.key.architecture["uses_attention_mask"] == previous.key.architecture["uses_attention_mask"]
        if not is_alike or previous.mode == "stream" or not has_tensors_of(self.below.parts, previous.below.parts):
            return None
        start = previous.below.n_stacks

        def above(hidden: Tensor, rows: Tensor) -> Tensor:
            with autocast(rows.device, self._precision):
                return self.below.above(hidden, rows, start=start)

        return PreviousCache(previous.cache, above)

    @staticmethod
    def _computation(cache: ActivationCache, previous: PreviousCache | None) -> ComputeRows | None:
        return None if previous is None else previous.rows_for(cache.key, cache.trunk)

    def _fill(self, previous: PreviousCache | None) -> None:
        """Compute and keep what training will ask for; of files, on the main rank, while the others wait."""
        if self.mode == "arrow":
            told = self._write_files(previous) if self._ranks.is_main else None
            while (told := self._ranks.same(told)) is None:
                continue
            if told:
                raise ConfigError(told)  # on all ranks: the others would wait for one that is gone
        self.cache = self._opened()
        if self.mode == "memory":
            self.cache.fill(self._rows(), compute=self._computation(self.cache, previous))

    def _write_files(self, previous: PreviousCache | None) -> str:
        """What is wrong, as text, if anything is."""
        try:
            cache = self._opened()
            cache.fill(self._alive(self._rows()), compute=self._computation(cache, previous), waits=True)
        except ConfigError as error:
            return str(error)
        return ""

    def _alive(self, rows: Iterator[Rows]) -> Iterator[Rows]:
        """The rows; meanwhile those who wait hear that somebody works."""
        heard = time.monotonic()
        for each in rows:
            if time.monotonic() - heard > SIGN_OF_LIFE_SECONDS:
                self._ranks.same(None)
                heard = time.monotonic()
            yield each

    def _opened(self) -> ActivationCache:
        most = self.batches.n_samples * (self.batches.n_variants or 1)  # files may hold what a longer stage asked for
        return ActivationCache(self.key, self.trunk, mode=self.mode, n_rows=most, folder=self.folder)

    def _rows(self) -> Iterator[Rows]:
        for variant, samples in self.requested.items():
            for first in range(0, len(samples), FILL_ROWS):
                batch = self.batches.rows(samples[first : first + FILL_ROWS], variant)
                yield batch.sample_ids, batch.variants, pack_rows(batch)

    def _decide(self, limits: Limits, n_reads: float, folder: Path) -> Decision:
        """What the main rank's clock says, on all of them; `n_reads` is how often a row is asked for."""
        if self._ranks.n_ranks > 1:  # what each of several processes kept for itself would be there several times
            limits = Limits(memory_bytes=0, disk_bytes=limits.disk_bytes)
        told = ("arrow", "it is there already")
        if self._ranks.is_main and not self.key.folder_in(folder).exists():
            rows = pack_rows(self.batches.rows(self.batches.sample_ids[:MEASURED_ROWS], 0))
            n_parameters = sum(parameter.numel() for parameter in self.below.parts.parameters())
            rates = measured_rates(self.trunk, self.key, rows, n_parameters=n_parameters, folder=folder)
            found = choose_cache_mode(self.key, self.n_rows, Reuse(n_reads, n_parameters, rates), limits=limits, has_folder=True)
            told = (found.mode, found.reason)
        mode, reason = self._ranks.same(told)
        return Decision(cast("KeptMode", mode), reason)
