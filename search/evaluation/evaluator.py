"""Evaluator: scores of placements, each measured once on fixed batches, logged, raced if asked."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs import ConfigError
from models import Placement, placement_text
from search.evaluation.racing import FIRST_LOOK, beaten, level_of, looks
from search.evaluation.score import Score, combine
from search.evaluation.score_batches import Values
from search.evaluation.score_log import MeasuredScores, ScoreLog

BRIEF_SECONDS = 10.0
"""Measurements that take no longer are not told of."""

Scorer = Callable[[Sequence[Placement], range], Values]
"""Distinct placements and which of the batches -> by task, [placements, batches], higher is better."""


@dataclass
class EvaluationCounts:
    """What an evaluator has been spared and has done, in evaluations of one batch (of every task) and of one block on one."""

    n_batch_evaluations: int = 0
    n_from_log: int = 0
    n_saved_by_race: int = 0
    n_layer_evaluations: int = 0
    n_layer_evaluations_alone: int = 0
    """What the placements would have taken one at a time."""


class Evaluator:
    """Scores placements: asks a scorer for what is not known yet, keeps it, and races if told to.

    Called with `keep`, an evaluator that `races` may stop measuring placements that are not among the `keep` best, with
    `confidence` that none of those is lost in a round (`racing.py`). What a call returns depends on what it is asked alone, not
    on what the log holds: a search that goes on does what it did.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        n_batches: int,
        shares: Mapping[str, float],
        key: str,
        log: ScoreLog | None = None,
        race: bool = False,
        confidence: float = 0.99,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Say who measures, and what.

        Args:
            scorer: measures; it is never asked for the same twice.
            n_batches: evaluation batches of each task.
            shares: weights of the tasks, which add up to 1.
            key: what the numbers depend on beside the placement (`score_key`).
            log: where measurements are kept beyond this process.
            race: whether `keep` is heeded.
            confidence: of the race.
            say: is told of measurements that took long.

        Raises:
            ConfigError: if a race has too few batches to end early.
        """
        if race and n_batches <= FIRST_LOOK:
            text = f"race: it first looks after {FIRST_LOOK} evaluation batches, and there are {n_batches}"
            raise ConfigError(f"{text}; give more (smaller ones cost no more), or race: false")
        self._scorer, self._log, self._key, self._say = scorer, log, key, say
        self.n_batches, self.shares, self.races, self.confidence = n_batches, dict(shares), race, confidence
        self.counts = EvaluationCounts()
        self._known: dict[Placement, MeasuredScores] = {}

    @property
    def n_asked(self) -> int:
        """How many placements it has been asked for so far, whoever measured them."""
        return len(self._known)

    def __call__(self, placements: Sequence[Placement], keep: int | None = None) -> list[Score]:
        """The scores of placements, in order. `keep`: how many of the best must be told apart (None: all)."""
        distinct = list(dict.fromkeys(placements))
        self._recall(distinct)
        if not self.races or keep is None or keep >= len(distinct):
            seen = dict.fromkeys(distinct, self.n_batches)
            self._measure(distinct, self.n_batches)
        else:
            seen = self._race(distinct, keep)
        scores = self._scores(seen)
        return [scores[placement] for placement in placements]

    def _recall(self, placements: Sequence[Placement]) -> None:
        for placement in placements:
            if placement not in self._known:
                self._known[placement] = {} if self._log is None else self._log.measured(self._row_key(placement))
                self.counts.n_from_log += self._n_known(placement)

    def _measure(self, placements: Sequence[Placement], n_batches: int) -> None:
        """See to it that the first batches of all are known; those that lack the same batches are measured together."""
        lacking: dict[int, list[Placement]] = {}
        for placement in placements:
            if (n_known := self._n_known(placement)) < n_batches:
                lacking.setdefault(n_known, []).append(placement)
        for n_known, group in lacking.items():
            started = time.monotonic()
            values = self._scorer(group, range(n_known, n_batches))
            if (seconds := time.monotonic() - started) > BRIEF_SECONDS:
                self._say(f"{len(group)} placement(s) scored in {seconds:.0f} s")
            self.counts.n_batch_evaluations += len(group) * (n_batches - n_known)
            for index, placement in enumerate(group):
                before = self._known[placement]
                new = {task: _finite_or_worst(rows[index]).tolist() for task, rows in values.items()}
                self._known[placement] = {task: before.get(task, []) + row for task, row in new.items()}
            if self._log is not None:
                self._log.add_round({self._row_key(placement): (placement, self._known[placement]) for placement in group})

    def _race(self, placements: Sequence[Placement], keep: int) -> dict[Placement, int]:
        """How many batches each was measured on when it was dropped, or at the end."""
        stops, seen = looks(self.n_batches), {}
        level = level_of(self.confidence, n_candidates=len(placements), keep=keep, n_looks=len(stops) - 1)
        running = list(placements)
        for look in stops:
            self._measure(running, look)
            seen.update(dict.fromkeys(running, look))
            if look < self.n_batches:
                values = np.stack([self._combined(placement, look) for placement in running])
                out = beaten(values, keep=keep, n_batches=self.n_batches, level=level)
                running = [placement for placement, is_out in zip(running, out, strict=True) if not is_out]
        self.counts.n_saved_by_race += sum(self.n_batches - look for look in seen.values())
        return seen

    def _scores(self, seen: Mapping[Placement, int]) -> dict[Placement, Score]:
        """Those that were dropped are put where they would be at the survivors' pace, but below them."""
        measured = {
            placement: Score.of({task: values[:look] for task, values in self._known[placement].items()}, self.shares)
            for placement, look in seen.items()
        }
        survivors = [placement for placement, look in seen.items() if look == self.n_batches]
        finite = [placement for placement in survivors if math.isfinite(measured[placement].value)]
        ceiling = math.nextafter(min((measured[placement].value for placement in finite), default=math.inf), -math.inf)
        paces: dict[int, float] = {}
        for look in set(seen.values()):
            gains = [measured[placement].value - float(self._combined(placement, look).mean()) for placement in finite]
            paces[look] = sum(gains) / max(len(gains), 1)
        for placement, look in seen.items():
            if look < self.n_batches:
                score = measured[placement]
                measured[placement] = replace(score, value=min(score.value + paces[look], ceiling), is_estimate=True)
        return measured

    def _combined(self, placement: Placement, look: int) -> np.ndarray:
        return combine({task: values[:look] for task, values in self._known[placement].items()}, self.shares)

    def _n_known(self, placement: Placement) -> int:
        return min((len(values) for values in self._known[placement].values()), default=0)

    def _row_key(self, placement: Placement) -> str:
        return f"{self._key}:{placement_text(placement)}"


def _finite_or_worst(values: np.ndarray) -> np.ndarray:
    """NaN and plus infinity are no better a measurement than minus infinity."""
    return np.where(np.isfinite(values), values, -math.inf)
