"""Rows of a cache as bytes: which sample, which variant, of which input, and the hidden state."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Ids = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Names:
    """What rows are called: samples [n] int64 and variants [n] int32."""

    samples: np.ndarray
    variants: np.ndarray

    @classmethod
    def of(cls, samples: Ids, variants: Ids, n_rows: int) -> Names:
        """Checked: one of each for each row of the inputs."""
        arrays = [np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids).reshape(-1) for ids in (samples, variants)]
        for name, array, limit in zip(("sample_ids", "variants"), arrays, (2**63 - 1, 2**31 - 1), strict=True):
            if len(array) != n_rows:
                raise ValueError(f"{name} has {len(array)} entries for {n_rows} rows of inputs")
            if n_rows and (array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) > limit):
                raise ValueError(f"{name} must be whole numbers from 0 to {limit}; got {array.dtype} {array[:4].tolist()}")
        return cls(arrays[0].astype(np.int64), arrays[1].astype(np.int32))

    @classmethod
    def together(cls, parts: Sequence[Names]) -> Names:
        """One after the other; of no parts, no names."""
        none = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        samples, variants = zip(none, *((part.samples, part.variants) for part in parts), strict=True)
        return cls(np.concatenate(samples), np.concatenate(variants))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, chosen: np.ndarray) -> Names:
        return Names(self.samples[chosen], self.variants[chosen])

    def pairs(self) -> list[tuple[int, int]]:
        """(sample, variant) of each row."""
        return list(zip(self.samples.tolist(), self.variants.tolist(), strict=True))

    def first_of_each(self) -> np.ndarray:
        """The places of rows without those that were named before."""
        seen: dict[tuple[int, int], int] = {}
        for place, pair in enumerate(self.pairs()):
            seen.setdefault(pair, place)
        return np.array(list(seen.values()), dtype=np.int64)


class RowIndex:
    """Where the row of (sample, variant) lies: sorted arrays, 16 bytes a row, for a dict of pairs takes some 300."""

    def __init__(self, names: Names) -> None:
        self._by_variant: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for variant in np.unique(names.variants).tolist():
            positions = np.flatnonzero(names.variants == variant)
            order = np.argsort(names.samples[positions], kind="stable")
            self._by_variant[variant] = names.samples[positions][order], positions[order]

    def find(self, names: Names) -> np.ndarray:
        """Positions [n] int64, -1 for rows that are not there."""
        found = np.full(len(names), -1, dtype=np.int64)
        for variant in np.unique(names.variants).tolist():
            if variant in self._by_variant:
                samples, positions = self._by_variant[variant]
                asked = np.flatnonzero(names.variants == variant)
                places = np.minimum(np.searchsorted(samples, names.samples[asked]), len(samples) - 1)
                is_there = samples[places] == names.samples[asked]
                found[asked[is_there]] = positions[places[is_there]]
        return found


def to_bytes(values: Tensor) -> np.ndarray:
    """[n, ...] of any type -> [n, bytes of a row] uint8."""
    rows: np.ndarray = values.detach().cpu().reshape(len(values), -1).contiguous().view(torch.uint8).numpy()
    return rows


def from_bytes(rows: np.ndarray, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The other way round: [n, bytes of a row] uint8 -> [n, *shape], in the same memory."""
    return torch.from_numpy(rows).view(dtype).view(-1, *shape)


def checksums(rows: np.ndarray) -> np.ndarray:
    """[n] uint32, one for each of the rows [n, bytes]."""
    return np.fromiter((zlib.crc32(row) for row in rows), dtype=np.uint32, count=len(rows))


ComputeRows = Callable[[Names, Tensor], Tensor]
"""Names [n] and inputs [n, ...] -> hidden states [n, time, d_model]."""
