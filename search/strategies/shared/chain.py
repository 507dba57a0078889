"""A model of scores with terms for layers and for near pairs of layers: fitted, and optimised by dynamic programming."""

from typing import NamedTuple

import numpy as np

from search.budget import Budget
from search.budget.program import ConstraintRow

MOST_STATES = 5000
"""So many partial codes are followed from slot to slot. Fewer than that differ under a few limits on counts: then it is exact.
Under limits on measured costs more do."""


class Chain(NamedTuple):
    """A model of scores: `single` [n_slots, n_names] and `pairs` [reach, n_slots, n_names, n_names].

    `pairs[d - 1, s]` is of the slots s - d and s, in that order.
    """

    single: np.ndarray
    pairs: np.ndarray


def best_codes(budget: Budget, chain: Chain, n: int) -> np.ndarray:
    """The best codes [<= n, n_slots] within the budget, one for each cost level and ending; by dynamic programming.

    Going through the slots, only the best of the partial codes is followed that have spent the same under every limit and end
    alike, since they can be continued in the same ways and gain the same. Of more than `MOST_STATES` the best by value are
    followed; then the codes need not be the best, and there may be none at all although the budget can be met.
    """
    n_slots, reach = len(budget.allowed), len(chain.pairs)
    codes, values = np.empty((1, 0), dtype=np.int16), np.zeros(1)
    for slot in range(n_slots):
        names = np.flatnonzero(budget.allowed[slot])
        parents = np.repeat(np.arange(len(codes)), len(names))
        chosen = np.tile(names, len(codes))
        values = values[parents] + chain.single[slot, chosen]
        for distance in range(1, min(reach, slot) + 1):
            values = values + chain.pairs[distance - 1, slot, codes[parents, slot - distance], chosen]
        codes = np.concatenate([codes[parents], chosen[:, None].astype(np.int16)], axis=1)
        levels, possible = _levels(budget, codes)
        order = np.flatnonzero(possible)[np.argsort(-values[possible], kind="stable")]
        endings = codes[:, max(0, slot + 1 - reach) :].T.astype(int)
        keys = _joined([np.zeros(len(codes), dtype=int), *endings, *levels])[order]
        first = np.sort(np.unique(keys, return_index=True)[1])[:MOST_STATES]
        codes, values = codes[order[first]], values[order[first]]
    return codes[budget.admits_all(codes)][:n] if len(codes) else np.empty((0, n_slots), dtype=np.int16)


def _levels(budget: Budget, codes: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """What partial codes [n, slots] spend under each limit [n], and whether the rest can keep each of them [n]."""
    n_done = codes.shape[1]
    levels = []
    possible = np.ones(len(codes), dtype=bool)
    for row in budget.rows:
        total = ConstraintRow(row.weights[:n_done], row.low, row.high).total(codes)
        least = np.where(budget.allowed, row.weights, np.inf)[n_done:].min(1).sum()
        most = np.where(budget.allowed, row.weights, -np.inf)[n_done:].max(1).sum()
        possible &= (total + most >= row.low - 1e-12 * abs(row.low)) & (total + least <= row.high + 1e-12 * abs(row.high))
        # The same spending in another order of summation is the same cost level.
        levels.append(np.round(total / (np.abs(row.weights).max() or 1.0), 9))
    return levels, possible


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    """One number a row for several columns; sorting whole rows instead takes ten times as long."""
    key, n_keys = np.zeros(len(columns[0]), dtype=int), 1
    for column in columns:
        number = column if column.dtype.kind == "i" else np.unique(column, return_inverse=True)[1]
        n_numbers = int(number.max(initial=0)) + 1
        if n_keys * n_numbers > 2**62:
            key = np.unique(key, return_inverse=True)[1]
            n_keys = int(key.max(initial=0)) + 1
        key, n_keys = key * n_numbers + number, n_keys * n_numbers
    return key


class Regression:
    """A chain as a Bayesian linear regression; how far pairs matter and how noisy scores are is chosen by the evidence."""

    NOISES = (1e-4, 1e-2, 1e-1)
    PAIR_SHARES = (1e-3, 1e-1, 1.0)

    def __init__(self, codes: np.ndarray, scores: np.ndarray, n_names: int, reach: int) -> None:
        self._n_names, self._reach = n_names, min(reach, codes.shape[1] - 1)
        self._scale = float(scores.std()) or 1.0
        self._targets = (scores - scores.mean()) / self._scale
        self._single, self._pairs = _features(codes, n_names, self._reach)
        options = [(self._fit(noise, share), noise, share) for noise in self.NOISES for share in self.PAIR_SHARES]
        (_, self._factor), self._noise, self._share = max(options, key=lambda option: option[0][0])

    def _fit(self, noise: float, share: float) -> tuple[float, np.ndarray]:
        """The log evidence, and the Cholesky factor of the scores' covariance."""
        n = len(self._targets)
        kernel = self._single @ self._single.T / self._n_slots + share * (self._pairs @ self._pairs.T) / self._n_slots
        factor = np.linalg.cholesky(kernel + (noise + 1e-9) * np.eye(n))
        return float(-0.5 * self._targets @ _solved(factor, self._targets) - np.log(np.diag(factor)).sum()), factor

    @property
    def _n_slots(self) -> int:
        return self._single.shape[1] // self._n_names

    def mean(self) -> Chain:
        """The expected chain."""
        return self._chain(np.zeros(self._single.shape[1]), np.zeros(self._pairs.shape[1]), self._targets)

    def sample(self, random: np.random.Generator) -> Chain:
        """A chain as it may be, given the scores (Matheron's rule: a draw from the prior, corrected by what it misses)."""
        single = random.normal(size=self._single.shape[1]) / np.sqrt(self._n_slots)
        pairs = random.normal(size=self._pairs.shape[1]) * np.sqrt(self._share / self._n_slots)
        noise = random.normal(size=len(self._targets)) * np.sqrt(self._noise)
        return self._chain(single, pairs, self._targets - self._single @ single - self._pairs @ pairs - noise)

    def _chain(self, single: np.ndarray, pairs: np.ndarray, missed: np.ndarray) -> Chain:
        weights = _solved(self._factor, missed) / self._n_slots
        single = single + self._single.T @ weights
        pairs = pairs + self._share * (self._pairs.T @ weights)
        n = self._n_names
        return Chain(single.reshape(-1, n), pairs.reshape(self._reach, self._n_slots, n, n))


def _solved(factor: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.linalg.solve(factor.T, np.linalg.solve(factor, values))


def _features(codes: np.ndarray, n_names: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Which name each slot has [n, n_slots * n_names], and which pair each two slots [n, reach * n_slots * n_names**2]."""
    n, n_slots = codes.shape
    single = (codes[:, :, None] == np.arange(n_names)).astype(float)
    pairs = np.zeros((n, reach, n_slots, n_names, n_names))
    for distance in range(1, reach + 1):
        pairs[:, distance - 1, distance:] = single[:, :-distance, :, None] * single[:, distance:, None, :]
    return single.reshape(n, -1), pairs.reshape(n, -1)
