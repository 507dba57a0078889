"""The contract of a store of hidden states, and the store in this process's memory."""

from typing import Protocol

import numpy as np

from search.activations.rows import Names


class Store(Protocol):
    """Rows of bytes by (sample, variant)."""

    @property
    def n_rows(self) -> int:
        """Rows so far."""
        ...

    def find(self, names: Names) -> np.ndarray:
        """Positions [n] of rows, -1 for those that are not there."""
        ...

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A copy of the rows at positions [n], [n, bytes of a row], and the checksums [n] of the inputs they were made from."""
        ...

    def add(self, names: Names, inputs_checksums: np.ndarray, rows: np.ndarray) -> None:
        """Take in rows that are not there yet, each once."""
        ...


class MemoryStore:
    """Rows that live as long as this process."""

    def __init__(self) -> None:
        self._positions: dict[tuple[int, int], int] = {}
        self._rows: list[np.ndarray] = []
        self._inputs_checksums: list[int] = []

    @property
    def n_rows(self) -> int:
        """Rows so far."""
        return len(self._rows)

    def find(self, names: Names) -> np.ndarray:
        """As the contract says."""
        return np.array([self._positions.get(pair, -1) for pair in names.pairs()], dtype=np.int64)

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the contract says."""
        places = positions.tolist()
        return np.stack([self._rows[place] for place in places]), np.array([self._inputs_checksums[place] for place in places])

    def add(self, names: Names, inputs_checksums: np.ndarray, rows: np.ndarray) -> None:
        """As the contract says."""
        self._positions |= {pair: self.n_rows + place for place, pair in enumerate(names.pairs())}
        self._rows += [row.copy() for row in rows]  # a view would keep its whole batch alive
        self._inputs_checksums += inputs_checksums.tolist()
