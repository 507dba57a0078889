"""Partial placements of the beam: some layers decided, the others at their cheapest choice."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from search.budget import Budget

N_WITNESSES = 16
"""So many of the last completions are tried on the next state, before an integer program, which takes 100 times as long."""


class Growth:
    """Codes [n, n_slots] on the way from the cheapest placement to those of a budget, name after name from dear to cheap.

    Phase i hands out `order[i]`. A slot that holds another name than its cheapest is decided; the others may take one of the
    names whose phase is still to come. Codes from which the budget can no longer be met are not followed.
    """

    def __init__(self, budget: Budget, order: Sequence[str]) -> None:
        self._budget = budget
        self.order = [budget.coding.number[name] for name in order]
        rank = np.argsort(self.order)
        self._rank = rank
        self.start = np.where(budget.allowed, rank, -1).argmax(1).astype(np.int16)
        self._is_start = np.arange(len(rank)) == self.start[:, None]
        self._met: dict[tuple[int, bytes], bool] = {}
        self._witnesses: deque[np.ndarray] = deque(maxlen=N_WITNESSES)
        self._stages = [self._stage(phase) for phase in range(len(order) + 1)]

    def _stage(self, phase: int) -> tuple[np.ndarray, np.ndarray]:
        """What free slots may hold from a phase on [n_slots, n_names], and kinds of slots [n_slots]: the same for equal slots."""
        open_names = self._budget.allowed & (self._is_start | (self._rank >= phase))
        features = np.concatenate([open_names, *(row.weights for row in self._budget.rows)], axis=1)
        return open_names, np.unique(features, axis=0, return_inverse=True)[1].reshape(-1)

    def children(self, states: np.ndarray, phase: int) -> np.ndarray:
        """The states with one more free slot that has the phase's name, each once, where the budget can still be met."""
        name = self.order[phase]
        can_take = (states == self.start) & self._budget.allowed[:, name] & (self.start != name)
        parents, slots = np.nonzero(can_take)
        grown = states[parents]
        grown[np.arange(len(slots)), slots] = name
        grown = np.unique(grown, axis=0)
        return grown[self.can_be_met(grown, phase)]

    def can_be_met(self, states: np.ndarray, phase: int) -> np.ndarray:
        """Whether the names from a phase on can complete each state to a code within the budget: [n]."""
        open_names, kinds = self._stages[phase]
        free = states == self.start
        possible = self._budget.admits_all(states)
        unsure = ~possible & self._within_bounds(states, free, open_names)
        if not unsure.any():
            return possible
        # Only how many slots of a kind hold what matters, so that few of the states are different questions.
        n_names = open_names.shape[1]
        questions = np.sort(kinds * (n_names + 1) + np.where(free, n_names, states), axis=1)
        for index in np.flatnonzero(unsure):
            key = phase, questions[index].tobytes()
            if key not in self._met:
                decided = np.where(free[index][:, None], open_names, np.arange(n_names) == states[index][:, None])
                self._met[key] = self._is_completed(decided, states[index])
            possible[index] = self._met[key]
        return possible

    def _is_completed(self, allowed: np.ndarray, state: np.ndarray) -> bool:
        """Whether the budget admits a code of `allowed`: a state's relatives are mostly completed alike."""
        is_free = allowed.sum(1) > 1
        tried = [_adapted(witness, state, is_free) for witness in self._witnesses]
        for code in tried:
            if allowed[np.arange(len(code)), code].all() and self._budget.admits_all(code[None])[0]:
                self._witnesses.appendleft(code)
                return True
        found = self._budget.solve(allowed=allowed)
        if found is not None:
            self._witnesses.appendleft(found)
        return found is not None

    def _within_bounds(self, states: np.ndarray, free: np.ndarray, open_names: np.ndarray) -> np.ndarray:
        """Whether each limit by itself could be met; cheap, and rules out most."""
        possible = np.ones(len(states), dtype=bool)
        each = np.arange(states.shape[1])
        for row in self._budget.rows:
            decided = row.weights[each, states]
            least = np.where(free, np.where(open_names, row.weights, np.inf).min(1), decided).sum(1)
            most = np.where(free, np.where(open_names, row.weights, -np.inf).max(1), decided).sum(1)
            possible &= (most >= row.low - 1e-12 * abs(row.low)) & (least <= row.high + 1e-12 * abs(row.high))
        return possible


def _adapted(witness: np.ndarray, state: np.ndarray, is_free: np.ndarray) -> np.ndarray:
    """A completion of another state, with what this one has decided: by swaps, as far as possible, which keep all counts."""
    code = witness.copy()
    for slot in np.flatnonzero(~is_free & (witness != state)):
        holders = np.flatnonzero(is_free & (code == state[slot]))
        if len(holders):
            code[holders[0]] = code[slot]
        code[slot] = state[slot]
    return code
