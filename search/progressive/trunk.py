"""The activation cache of a stage: what is below its frontier as a trunk, and the rows that it is filled with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from configs import ConfigError
from models import RackSpec
from search.activations import ActivationCache, CacheKey, Decision, Earlier, Limits, Rates, Reuse, Trunk, choose
from search.activations import Batch as Rows
from search.activations.choice import KeptMode
from search.activations.trunk import has_tensors_of
from search.devices import autocast
from search.parallel import Ranks
from search.progressive.data import GrowthBatch, GrowthBatches
from search.progressive.running import Growing
from search.progressive.spec import ProgressiveSpec
from search.results import Row

FILL_ROWS = 64
"""Rows that are asked for at once when a cache is filled."""
GPU_ROWS = 32
"""Rows of a forward pass of the trunk on a GPU; on a CPU it is one, whose bits no batch can change."""
MEASURED_ROWS = 8
MEASURED_BYTES = 2**24


class Below(nn.Module):
    """What stands still below the frontier: embedding, time embedding and the first stacks of a rack, the same modules."""

    def __init__(self, model: Growing) -> None:
        super().__init__()
        rack = model.rack
        self.embedding, self.time_embedding = rack.embedding, rack.time_embedding
        self.stacks = nn.ModuleList(list(rack.stacks)[: model.frontier])
        self._rack, self._uses_keep = [rack], model.uses_keep  # in a list: the whole rack is no part of the trunk

    def forward(self, rows: Tensor) -> Tensor:
        """Packed rows (see `pack_rows`) -> [rows, time, d_model]."""
        return self.above(self._embedded(rows), rows, start=0)

    def above(self, hidden: Tensor, rows: Tensor, *, start: int) -> Tensor:
        """The same from what stands at the input of a stack, which an earlier cache may know."""
        (rack,) = self._rack
        n_positions = (rows.shape[1] - 1) // 2
        keep = rows[:, n_positions:-1].bool() if self._uses_keep else None
        return rack.run(hidden, start=start, stop=len(self.stacks), keep=keep)

    def _embedded(self, rows: Tensor) -> Tensor:
        (rack,) = self._rack
        n_positions = (rows.shape[1] - 1) // 2
        return rack.embed(rows[:, :n_positions], None if rack.time_embedding is None else rows[:, -1])


def pack_rows(batch: GrowthBatch) -> Tensor:
    """All that a trunk's output depends on beside its weights: tokens, where there are no pads, time step; [rows, 2 time + 1]."""
    keep = torch.ones_like(batch.inputs) if batch.keep is None else batch.keep.long()
    time_steps = batch.inputs.new_zeros(len(batch.inputs)) if batch.time_steps is None else batch.time_steps
    return torch.cat([batch.inputs, keep, time_steps[:, None]], dim=1)


class TrunkCache:
    """The hidden states at the frontier of a stage, for the batches of its training.

    Made on all ranks at once; where they share files, the main one fills them while the others wait.

    Args:
        spec: the run.
        model: the rack of the stage; what is below its frontier is the trunk.
        rack: its spec.
        batches: what it is filled with.
        folder: where files may lie, beside those of other stages.
        n_steps: of the stage, by which `auto` decides whether it pays.
        ranks: the processes that train together.
        earlier: that of the stage before, from which this one is filled by the new part of the trunk alone, where that can be.

    Raises:
        ConfigError: if it would be larger than `growth.cache_bytes`, or a folder holds something else.
    """

    def __init__(
        self,
        spec: ProgressiveSpec,
        model: Growing,
        rack: RackSpec,
        *,
        batches: GrowthBatches,
        folder: Path,
        n_steps: int,
        ranks: Ranks,
        earlier: TrunkCache | None = None,
    ) -> None:
        growth, device = spec.growth, batches.device
        self.batches, self.n_variants = batches, batches.n_variants or 1
        precision = spec.train.precision
        self.below = below = Below(model)

        def forward(rows: Tensor) -> Tensor:
            with autocast(device, precision):
                return below(rows)

        def above(hidden: Tensor, rows: Tensor) -> Tensor:
            assert earlier is not None  # else nobody calls this
            with autocast(device, precision):
                return below.above(hidden, rows, start=len(earlier.below.stacks))

        self.cache: ActivationCache
        self.trunk = Trunk(below, forward, rows_per_forward=GPU_ROWS if device.type == "cuda" else 1)
        self.key = CacheKey(
            trunk_hash=self.trunk.hash,
            architecture={**architecture(rack, model.frontier), "uses_keep": model.uses_keep},
            corruption=batches.corruption(),
            data=batches.fingerprint(),
            precision=f"{device.type} {precision}",
            dtype="bfloat16" if rack.residual_dtype == "bfloat16" else "float32",
            time=batches.samples.seq_len,
            d_model=rack.d_model,
            rows_per_forward=self.trunk.rows_per_forward,
        )
        self.epochs = n_steps / batches.steps_per_epoch
        n_rows = batches.n_samples * self.n_variants
        limits = Limits(memory_bytes=growth.cache_bytes, disk_bytes=growth.cache_bytes)
        if growth.cache_mode == "auto":  # what each of several processes kept for itself would be there several times
            allowed = limits if ranks.n_ranks == 1 else Limits(memory_bytes=0, disk_bytes=growth.cache_bytes)
            self.decision = self._decide(allowed, n_rows, folder=folder, ranks=ranks)
        else:
            self.decision = Decision(growth.cache_mode, "asked for")
        self.mode = self.decision.mode
        self.folder = self.key.folder_in(folder) if self.mode == "arrow" else None
        self._earlier = Earlier(earlier.cache, above) if earlier is not None and self._goes_on_from(earlier) else None
        started = time.monotonic()
        if error := ranks.same(self._write_files(n_rows, limits) if self.mode == "arrow" and ranks.is_main else ""):
            raise ConfigError(error)  # on all ranks: the others would wait for one that is gone
        self.cache = self._open(n_rows, limits)
        if self.mode == "memory":
            self.cache.fill(self._rows(), earlier=self._earlier)
        self._earlier = None  # what it holds is not needed any more
        self._before = self.cache.statistics
        self.fill_seconds, self.n_fill_forwards = time.monotonic() - started, self.trunk.n_forwards

    def start_counting(self) -> None:
        """From here on it is training that asks."""
        self._before = replace(self.cache.statistics)

    @property
    def n_forwards(self) -> int:
        """Forward passes of the trunk since counting started."""
        return self.cache.statistics.forwards - self._before.forwards

    def told(self) -> Row:
        """What a stage's row says of its cache."""
        now = self.cache.statistics
        hits, misses = now.hits - self._before.hits, now.misses - self._before.misses
        return {
            "cache_mode": self.mode,
            "cache_reason": self.decision.reason,
            "cache_bytes": now.bytes_held,
            "cache_hits": hits,
            "cache_misses": misses,
            "cache_hit_rate": hits / max(hits + misses, 1),
            "cache_fill_seconds": round(self.fill_seconds, 3),
            "cache_fill_forwards": self.n_fill_forwards,
        }

    def hidden(self, batch: GrowthBatch) -> Tensor:
        """[rows, time, d_model] of a batch of training."""
        return self.cache.hidden(batch.sample_ids, batch.variants, pack_rows(batch))

    def _goes_on_from(self, earlier: TrunkCache) -> bool:
        """Whether another cache is of the same inputs, and of the lower part of this trunk as it is now."""
        alike = ("corruption", "data", "precision", "dtype", "rows_per_forward")
        is_alike = all(getattr(self.key, name) == getattr(earlier.key, name) for name in alike)
        is_alike = is_alike and self.key.architecture["uses_keep"] == earlier.key.architecture["uses_keep"]
        return is_alike and earlier.mode != "stream" and has_tensors_of(self.below, earlier.below)

    def _write_files(self, n_rows: int, limits: Limits) -> str:
        """Fill the files, unless they are full; what is wrong, as text."""
        try:
            cache = self._open(n_rows, limits)
            if cache.statistics.bytes_held < self.batches.n_samples * self._n_filled * self.key.row_bytes:
                cache.fill(self._rows(), earlier=self._earlier)
        except ConfigError as error:
            return str(error)
        return ""

    def _open(self, n_rows: int, limits: Limits) -> ActivationCache:
        return ActivationCache(self.key, self.trunk, mode=self.mode, n_rows=n_rows, folder=self.folder, limits=limits)

    @property
    def _n_filled(self) -> int:
        """As many variants as training comes to."""
        return min(self.n_variants, math.ceil(self.epochs))

    def _rows(self) -> Iterator[Rows]:
        """Every sample in each of these variants."""
        for variant in range(self._n_filled):
            for first in range(0, self.batches.n_samples, FILL_ROWS):
                batch = self.batches.rows(self.batches.sample_ids[first : first + FILL_ROWS], variant)
                yield batch.sample_ids, batch.variants, pack_rows(batch)

    def _decide(self, limits: Limits, n_rows: int, *, folder: Path, ranks: Ranks) -> Decision:
        """What the main rank's clock says, on all of them."""
        mode, reason = "arrow", "it is there already"
        if ranks.is_main and not self.key.folder_in(folder).exists():
            rows = pack_rows(self.batches.rows(self.batches.sample_ids[:MEASURED_ROWS], 0))
            n_parameters = sum(parameter.numel() for parameter in self.trunk.module.parameters())
            rates = measured_rates(self.trunk, self.key, rows, n_parameters=n_parameters, folder=folder)
            reuse = Reuse(self.epochs / self.n_variants, n_parameters, rates)
            decision = choose(self.key, n_rows, reuse, limits=limits, has_folder=True)
            mode, reason = decision.mode, decision.reason
        mode, reason = ranks.same([mode, reason])
        return Decision(cast("KeptMode", mode), reason)


def measured_rates(trunk: Trunk, key: CacheKey, rows: Tensor, *, n_parameters: int, folder: Path) -> Rates:
    """What the trunk reaches on packed rows, and how fast bytes come back from memory and from a file in a folder."""
    started = time.perf_counter()
    trunk(rows, shape=key.shape, dtype=key.torch_dtype)
    if rows.is_cuda:
        torch.cuda.synchronize(rows.device)
    flops = 2 * n_parameters * key.time * len(rows) / (time.perf_counter() - started)
    content = np.random.default_rng(0).integers(256, size=MEASURED_BYTES, dtype=np.uint8)
    started = time.perf_counter()
    content.copy()
    memory = MEASURED_BYTES / (time.perf_counter() - started)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        file.write(content.data)
        file.seek(0)
        started = time.perf_counter()
        file.read()
        disk = MEASURED_BYTES / (time.perf_counter() - started)
    return Rates(flops, memory, disk)


def architecture(rack: RackSpec, frontier: int) -> dict[str, Any]:
    """What no tensor says of the part of a rack below a frontier: windows, scales, kinds."""
    content = rack.content()
    kept = {name: content.get(name) for name in ("d_model", "residual_dtype", "embedding", "time", "norm")}
    return {**kept, "stacks": content["stacks"][:frontier]}
