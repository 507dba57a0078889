"""Several Optuna studies side by side, from which Ray Tune draws its trials."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, cast

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from launch.tune.reports import FAILED
from launch.tune.searchers import Config, StatelessSearcher


class StudySearch(StatelessSearcher):
    """Several Optuna studies side by side, asked in turn, `n_samples` draws each.

    What is best for one setting says nothing about another, so each has a study of its own; all are kept in one journal file,
    which optuna-dashboard shows. A draw that an interruption cut short is drawn again.

    Ray's own OptunaSearch tells a draw that was stopped early as a complete one, without its last report, counts reports from 1
    again when a trial is tried again, and leaves a draw running for ever whose last value is no number.
    """

    def __init__(
        self,
        studies: Mapping[str, Config],
        n_left: Mapping[str, int],
        space: dict[str, optuna.distributions.BaseDistribution],
        storage: optuna.storages.BaseStorage,
        *,
        metric: str,
        time: str,
        whole: str,
    ) -> None:
        """Open the studies.

        Args:
            studies: fixed settings by study, merged into every draw.
            n_left: how many draws are left in each.
            space: what is drawn.
            storage: where the studies are kept.
            metric: the key of what is maximised, in every report.
            time: the key of a trial's own count of what it has done, which goes on where a trial goes on that is tried again.
            whole: a key that the last report of a trial has, and no other: one that ends without it was stopped early.
        """
        super().__init__(metric=metric, mode="max")
        self._fixed, self._space = dict(studies), space
        self._key, self._time, self._whole = metric, time, whole
        n_before = _close_studies(storage)
        self._studies = {
            name: optuna.create_study(
                study_name=name,
                storage=storage,
                sampler=_sampler(name, n_before.get(name, 0)),
                direction="maximize",
                load_if_exists=True,
            )
            for name in studies
            if n_left[name]
        }
        self._left = [name for _, name in sorted((draw, name) for name in studies for draw in range(n_left[name]))]
        self._draws: dict[str, tuple[optuna.Study, optuna.Trial]] = {}
        self._reported: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Config | None:
        """A draw of the study whose turn it is."""
        if not self._left:
            return cast(None, Searcher.FINISHED)
        name = self._left.pop(0)
        study = self._studies[name]
        draw = study.ask(self._space)
        self._draws[trial_id] = study, draw
        return {**self._fixed[name], **draw.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the study how the trial goes; what it has heard before, a trial that is tried again does not change."""
        value, time = result[self._key], int(result[self._time])
        if self._whole not in result and math.isfinite(value) and time > self._reported.get(trial_id, 0):
            self._draws[trial_id][1].report(value, time)
            self._reported[trial_id] = time

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """Tell the study how the trial ended; of one that was stopped early, Tune has kept back the last report."""
        study, draw = self._draws[trial_id]
        if error or not result or result.get(FAILED) or not math.isfinite(result.get(self._key, math.nan)):
            study.tell(draw, state=TrialState.FAIL)
        elif self._whole in result:
            study.tell(draw, result[self._key])
        else:
            self.on_trial_result(trial_id, result)
            study.tell(draw, state=TrialState.PRUNED)


def _close_studies(storage: optuna.storages.BaseStorage) -> dict[str, int]:
    """How many draws each study holds already; those that an interruption left under way are failed, not waited for."""
    n_draws = {}
    for summary in optuna.get_all_study_summaries(storage):
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        for draw in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            study.tell(draw.number, state=TrialState.FAIL)
        n_draws[summary.study_name] = len(study.trials)
    return n_draws


def _sampler(name: str, n_before: int) -> optuna.samplers.BaseSampler:
    """TPE, seeded by the study's name and length, so that a study that goes on does not draw its first points again.

    Draws under way do not count as poor ones (`constant_liar`): on hills over rate and decay, 40 seeds, 4 or 12 at once, the best
    of 24 or 48 draws was as good without, and draws after the first ten were a quarter nearer to the top.
    """
    seed = int(hashlib.sha256(f"{name} {n_before}".encode()).hexdigest()[:8], 16)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=False)
