"""Counts the peak memory of a computation tensor by tensor, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from search.runs.interruption import interruptions_held


class MemoryCount(TorchDispatchMode):
    """Counts the bytes of storages that are made inside a `with` block, for as long as they live; views count once.

    What kernels use for themselves is not seen. `live` is what is held now, `peak` the most at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without CUDA nothing is compiled here, and torch need not import its compiler (two seconds) to see to that."""
        return torch.cuda.is_available()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _address(leaf) not in given | self._known:
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, n_bytes = storage._cdata, storage.nbytes()  # noqa: SLF001 - the identity that survives its Python wrappers
        self._known.add(address)
        self.live += n_bytes
        weakref.finalize(storage, self._forget, address, n_bytes)

    def _forget(self, address: int, n_bytes: int) -> None:
        self._known.discard(address)
        self.live -= n_bytes


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that `work` holds at once, its result included, what was there before it left out."""
    with interruptions_held(), MemoryCount() as count:
        work()
    return count.peak


@dataclass(frozen=True)
class Need:
    """Bytes that a call holds: some whatever its size, and some a row."""

    fixed: int
    per_row: int

    @classmethod
    def of(cls, work: Callable[[int], object]) -> Need:
        """Measured on one row and on two, after a call that leaves behind what is made once (casts, tables)."""
        work(1)
        one, two = peak_bytes(lambda: work(1)), peak_bytes(lambda: work(2))
        per_row = max(two - one, 1)
        return cls(max(one - per_row, 0), per_row)

    def rows_in(self, n_bytes: int) -> int:
        """How many rows fit."""
        return max(n_bytes - self.fixed, 0) // self.per_row

    def bytes_of(self, n_rows: int) -> int:
        """What so many rows need."""
        return self.fixed + n_rows * self.per_row

    def __or__(self, other: Need) -> Need:
        return Need(max(self.fixed, other.fixed), max(self.per_row, other.per_row))
