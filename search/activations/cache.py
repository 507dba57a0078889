"""The activation cache: hidden states of a trunk by sample and variant, the same bits in every mode."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from search.activations.choice import Decision, Limits, Reuse, choose_cache_mode
from search.activations.folder import ArrowStore
from search.activations.key import CacheKey
from search.activations.memory import MemoryStore, Store
from search.activations.rows import ComputeRows, Ids, Names, checksums, from_bytes, to_bytes
from search.activations.statistics import Statistics
from search.activations.trunk import Trunk

CacheMode = Literal["memory", "arrow", "stream", "auto"]
RowBatch = tuple[Ids, Ids, Tensor]
"""Sample ids [n], variants [n], inputs [n, ...]."""


class ActivationCache:
    """What a trunk makes of (sample, variant), computed as rarely as the mode allows.

    `memory` keeps what it computes, in this process. `arrow` reads a folder that `fill` has written and any number of processes
    share; rows that were not there when it was opened are computed and not kept. `stream` computes always. `auto` is one of
    these, by `choose_cache_mode`; `decision` says which and why.

    Args:
        key: what the hidden states are of.
        trunk: computes them; its hash and rows per forward must be the key's.
        mode: as above.
        n_rows: samples times variants, of which the size is known before anything is written.
        folder: of `arrow`, this cache's own: `key.folder_in(parent)`.
        limits: bytes that it may take up.
        reuse: what `auto` decides by.

    Raises:
        ConfigError: if it would be too large, or the folder holds something else or is damaged.
    """

    def __init__(
        self,
        key: CacheKey,
        trunk: Trunk,
        *,
        mode: CacheMode,
        n_rows: int,
        folder: Path | None = None,
        limits: Limits | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        self.key, self.trunk, self.n_rows = key, trunk, n_rows
        self.statistics = Statistics()
        limits = limits or Limits()
        if (asked := (key.trunk_hash, key.rows_per_forward)) != (found := (trunk.hash, trunk.rows_per_forward)):
            text = "the key is of the trunk {} with {} row(s) per forward, but this trunk is {} with {}"
            raise ConfigError(text.format(*asked, *found))
        if mode == "auto":
            if reuse is None:
                raise ValueError("mode auto needs `reuse`: epochs, parameters of the trunk, measured rates")
            self.decision = choose_cache_mode(key, n_rows, reuse, limits=limits, has_folder=folder is not None)
        else:
            self.decision = Decision(mode, "asked for")
        self.mode = self.decision.mode
        limits.refuse(key, n_rows, self.mode)
        self._store: Store | None = MemoryStore() if self.mode == "memory" else None
        if self.mode == "arrow":
            if folder is None:
                raise ValueError("mode arrow needs a folder")
            self._store = ArrowStore(folder, key)
            self.statistics.bytes_held = self._store.n_rows * key.row_bytes

    def hidden(self, sample_ids: Ids, variants: Ids, inputs: Tensor) -> Tensor:
        """Hidden states [batch, time, d_model] in the key's type, on the inputs' device.

        Inputs [batch, ...] on a CPU are compared with those that the cached rows were made from; on another device that would
        wait for it at every step.

        Raises:
            ConfigError: if the trunk has changed, inputs are not those of these samples and variants, or a file is damaged.
        """
        names = Names.of(sample_ids, variants, len(inputs))
        self.trunk.refuse_if_changed()
        if not len(names):
            return inputs.new_empty((0, *self.key.shape), dtype=self.key.torch_dtype)
        positions = np.full(len(names), -1) if self._store is None else self._store.find(names)
        is_missing = positions < 0
        self.statistics.misses += (n_missing := int(is_missing.sum()))
        self.statistics.hits += len(names) - n_missing
        if n_missing == len(names):
            return self._compute(names, inputs, keep=self.mode == "memory")
        is_hit = torch.from_numpy(~is_missing)
        found = self._read(names[~is_missing], positions[~is_missing], inputs[is_hit])
        if not n_missing:
            return found
        hidden = inputs.new_empty((len(names), *self.key.shape), dtype=self.key.torch_dtype)
        hidden[is_hit] = found
        hidden[~is_hit] = self._compute(names[is_missing], inputs[~is_hit], keep=self.mode == "memory")
        return hidden

    def fill(self, batches: Iterable[RowBatch], *, compute: ComputeRows | None = None, waits: bool = False) -> None:
        """Compute the rows that are not there yet and keep them; what a killed call has finished is not computed again.

        Files that another process is filling are an error; or, if this one `waits`, there when it is done.

        `compute` makes rows of names and inputs, the same bits as the trunk would (`PreviousCache.rows_for`); null: the trunk. In
        the mode `stream` nothing is kept, and nothing computed.

        Raises:
            ConfigError: if the trunk has changed, there are more rows than `n_rows`, or no room for them on the disk.
        """
        store = self._store
        if store is None:
            return
        self.trunk.refuse_if_changed(thoroughly=True)
        with store.filling(waits=waits) if isinstance(store, ArrowStore) else nullcontext():
            if isinstance(store, ArrowStore):
                store.refuse_full_disk(self.n_rows - store.n_rows)
            for sample_ids, variants, inputs in batches:
                names = Names.of(sample_ids, variants, len(inputs))
                self.trunk.refuse_if_changed()
                is_missing = store.find(names) < 0
                if is_missing.any():
                    self._compute(names[is_missing], inputs[torch.from_numpy(is_missing)], compute=compute, keep=True)
        self.statistics.bytes_held = store.n_rows * self.key.row_bytes

    def _read(self, names: Names, positions: np.ndarray, inputs: Tensor) -> Tensor:
        assert self._store is not None  # something was found there
        rows, made_from = self._store.read(positions)
        self.statistics.bytes_read += rows.nbytes
        if not inputs.is_cuda and (differs := made_from != _inputs_checksums(inputs)).any():
            sample, variant = names[differs].pairs()[0]
            rule = "a corruption must be a function of sample and variant (and of a seed in the key) alone"
            raise ConfigError(f"sample {sample}, variant {variant}: its hidden state was cached for other inputs; {rule}")
        return from_bytes(rows, self.key.shape, self.key.torch_dtype).to(inputs.device)

    def _from_inputs(self, _names: Names, inputs: Tensor) -> Tensor:
        return self.trunk(inputs, shape=self.key.shape, dtype=self.key.torch_dtype)

    def _compute(self, names: Names, inputs: Tensor, *, keep: bool, compute: ComputeRows | None = None) -> Tensor:
        before = self.trunk.n_forwards
        hidden = (compute or self._from_inputs)(names, inputs)
        self.statistics.forwards += self.trunk.n_forwards - before
        if keep:
            assert self._store is not None  # `stream` keeps nothing
            first = names.first_of_each()
            if (n_rows := self._store.n_rows + len(first)) > self.n_rows:
                raise ConfigError(f"cache: made for n_rows = {self.n_rows} samples and variants, but these are at least {n_rows}")
            rows = to_bytes(hidden)[first]
            self._store.add(names[first], _inputs_checksums(inputs)[first], rows)
            self.statistics.bytes_written += rows.nbytes
            self.statistics.bytes_held = self._store.n_rows * self.key.row_bytes
        return hidden.to(inputs.device)


def _inputs_checksums(inputs: Tensor) -> np.ndarray:
    """Of each row, whatever type its integers have."""
    return checksums(to_bytes(inputs if inputs.is_floating_point() else inputs.long()))
