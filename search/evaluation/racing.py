"""Racing: which placements need not be measured further, because they cannot be among the best any more."""

import numpy as np
from scipy.special import stdtrit

FIRST_LOOK = 8
"""Fewer paired differences than this have too few degrees of freedom to tell anything at the level that a race asks for."""


def looks(n_batches: int) -> list[int]:
    """After how many batches a race is looked at: 8, 16, 32 and so on, and in the end all."""
    found = []
    look = FIRST_LOOK
    while look < n_batches:
        found.append(look)
        look *= 2
    return [*found, n_batches]


def level_of(confidence: float, *, n_candidates: int, keep: int, n_looks: int) -> float:
    """The level of each single test, so that a whole race loses one of its true best with at most 1 - confidence.

    To lose one takes a test, at some look, that calls a candidate outside the true best better than one inside: keep x
    (n_candidates - keep) pairs, `n_looks` times each, and the error is shared out evenly among them (Bonferroni: it holds
    however candidates and looks depend on each other).
    """
    return (1 - confidence) / (keep * (n_candidates - keep) * n_looks)


def beaten(values: np.ndarray, *, keep: int, n_batches: int, level: float) -> np.ndarray:
    """Which candidates are worse than `keep` others beyond doubt.

    The difference of each pair on the batches so far is held against Student's t. What counts is the mean over the fixed
    `n_batches`, of which these are a part without replacement, so the error of the mean shrinks by sqrt(1 - seen / n_batches).
    Differences that are all the same (answers to few questions) tell nothing of their error, and decide nothing. A candidate that
    is at minus infinity stays there, so it is worse than every other that is not.

    Args:
        values: [candidates, batches seen], higher is better.
        keep: how many are to be left.
        n_batches: how many there are in all.
        level: of each single test.

    Returns:
        [candidates] bool.
    """
    n_candidates, n_seen = values.shape
    bound = float(stdtrit(n_seen - 1, 1 - level))
    shrunk = np.sqrt((1 - n_seen / n_batches) / n_seen)
    is_finite = np.isfinite(values.sum(1))
    out = np.zeros(n_candidates, dtype=bool)
    for index in range(n_candidates):
        with np.errstate(invalid="ignore"):  # minus infinity from itself
            differences = values - values[index]
            mean, error = differences.mean(1), differences.std(1, ddof=1) * shrunk
        is_better = (error > 0) & (mean > bound * error) if is_finite[index] else is_finite
        out[index] = np.sum(is_better) >= keep
    return out
