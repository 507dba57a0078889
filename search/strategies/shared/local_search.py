"""Local search from a placement: swaps between slots and single replacements, until none helps; and a start that has a score."""

import math
from collections.abc import Generator

import numpy as np

from search.budget import Budget
from search.budget.admitted import Admitted
from search.samplers.shared.sampler import generator
from search.strategies.shared.strategy import Ask

Found = tuple[np.ndarray, float]
MOST_STARTS = 256
"""Random placements that are looked at for one with a finite score."""


def finite_start(budget: Budget, code: np.ndarray, score: float) -> Generator[Ask, list[float], Found]:
    """A placement that local search can go on from: this one, or, without a finite score, the best of some random ones.

    All neighbours of a placement may be without a score too, and nothing there tells which way to go.
    """
    admitted, random = Admitted(budget), generator("finite start")
    seen = {budget.coding.decode(code[None])[0]}
    while not math.isfinite(score) and len(seen) < MOST_STARTS and (drawn := admitted.draw_new(random, 32, seen)):
        seen.update(drawn)
        scores = yield Ask(drawn, keep=1)
        index = int(np.argmax(scores))
        code, score = budget.coding.encode([drawn[index]])[0], scores[index]
    return code, score


def refine(budget: Budget, code: np.ndarray, score: float) -> Generator[Ask, list[float], Found]:
    """Yield all neighbours of the best code [n_slots] in one round, go to the best of them, and so on; returns where it ended.

    Where neither a swap nor a replacement helps, relocations are tried: a name moves to another slot, and the slot that it
    leaves takes a third one. A swap cannot do that, and a limit on the first name keeps replacements from doing it in two steps.
    """
    while True:
        for neighbours in (near(budget, code), far(budget, code)):
            if not len(neighbours):
                continue
            scores = yield Ask(budget.coding.decode(neighbours), keep=1)
            index = int(np.argmax(scores))
            if scores[index] > score:
                code, score = neighbours[index], scores[index]
                break
        else:
            return code, score


def near(budget: Budget, code: np.ndarray) -> np.ndarray:
    """The codes [n, n_slots] within the budget that differ by a swap of two slots, or in one slot."""
    changed = np.concatenate([_swaps(budget, code), _replacements(budget, code)])
    return changed[budget.admits_all(changed)]


def far(budget: Budget, code: np.ndarray) -> np.ndarray:
    """The codes within the budget that differ by a relocation, unless it is two replacements that are within it by themselves."""
    first, second = np.nonzero((code[:, None] != code) & budget.allowed[:, code].T)
    pair, third = np.nonzero(budget.allowed[first])
    first, second = first[pair], second[pair]
    is_new = (third != code[first]) & (third != code[second])
    first, second, third = first[is_new], second[is_new], third[is_new]
    single = _admits_replacement(budget, code)
    needed = ~(single[first, third] & single[second, code[first]])
    first, second, third = first[needed], second[needed], third[needed]
    changed = np.repeat(code[None], len(first), axis=0)
    each = np.arange(len(first))
    changed[each, second], changed[each, first] = code[first], third
    return changed[budget.admits_all(changed)]


def _swaps(budget: Budget, code: np.ndarray) -> np.ndarray:
    can_hold = budget.allowed[:, code]  # [slot, other]: whether the slot may take what the other has
    first, second = np.nonzero(np.triu((code[:, None] != code) & can_hold & can_hold.T))
    changed = np.repeat(code[None], len(first), axis=0)
    each = np.arange(len(first))
    changed[each, first], changed[each, second] = code[second], code[first]
    return changed


def _replacements(budget: Budget, code: np.ndarray) -> np.ndarray:
    slots, names = np.nonzero(budget.allowed & (np.arange(budget.allowed.shape[1]) != code[:, None]))
    changed = np.repeat(code[None], len(slots), axis=0)
    changed[np.arange(len(slots)), slots] = names
    return changed


def _admits_replacement(budget: Budget, code: np.ndarray) -> np.ndarray:
    """Whether a slot may take a name, all else equal: [n_slots, n_names]."""
    changed = _replacements(budget, code)
    admitted = np.zeros(budget.allowed.shape, dtype=bool)
    slots = np.nonzero(changed != code)[1]
    admitted[slots, changed[np.arange(len(slots)), slots]] = budget.admits_all(changed)
    return admitted
