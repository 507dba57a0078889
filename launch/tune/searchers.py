"""Where Ray Tune gets the next trial from: a list, one Optuna study for each setting, or the same again for as long as needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import optuna
from ray.tune import Stopper
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

Config = dict[str, Any]
"""What a trial is told."""


class _Searcher(Searcher):
    """A searcher that saves nothing, for a resumed run is told what is left when it is made; and that learns nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing to learn."""


class ListSearch(_Searcher):
    """Hands out given configurations in order."""

    def __init__(self, configs: Sequence[Config], *, metric: str | None = None, mode: str | None = None) -> None:
        super().__init__(metric=metric, mode=mode)
        self._left = list(configs)

    def suggest(self, trial_id: str) -> Config | None:
        """The next configuration, or the word that there is none."""
        del trial_id
        return self._left.pop(0) if self._left else cast(None, Searcher.FINISHED)


class StandbySearch(_Searcher):
    """The same configuration as often as Tune asks, until the search is over: trials that wait to be told what to do."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self.is_over = False

    def suggest(self, trial_id: str) -> Config | None:
        """Another trial, at once."""
        del trial_id
        return cast(None, Searcher.FINISHED) if self.is_over else self._config


class UntilOver(Stopper):
    """Ends all trials with the search: those of workers that are still starting, or that fail to, would outlast it."""

    def __init__(self, search: StandbySearch) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """All, once the search is over."""
        return self._search.is_over


class StudySearch(_Searcher):
    """Several Optuna studies side by side, asked in turn, `n_samples` draws each.

    What is best for one setting says nothing about another, so each has a study of its own; all are kept in one journal file,
    which optuna-dashboard shows. A draw that an interruption cut short is drawn again.
    """

    def __init__(
        self,
        studies: Mapping[str, Config],
        n_left: Mapping[str, int],
        space: dict[str, optuna.distributions.BaseDistribution],
        storage: optuna.storages.BaseStorage,
        *,
        metric: str,
        mode: str,
    ) -> None:
        """Give each study its fixed settings (merged into every draw), and how many draws are left in it."""
        super().__init__(metric=metric, mode=mode)
        self._fixed = dict(studies)
        n_before = _close_studies(storage)
        self._searches = {
            name: OptunaSearch(
                space,
                metric=metric,
                mode=mode,
                study_name=name,
                storage=storage,
                sampler=_sampler(name, n_before.get(name, 0)),
            )
            for name in studies
            if n_left[name]
        }
        self._left = [name for _, name in sorted((draw, name) for name in studies for draw in range(n_left[name]))]
        self._study_of: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Config | None:
        """A draw of the study whose turn it is."""
        if not self._left:
            return cast(None, Searcher.FINISHED)
        name = self._study_of[trial_id] = self._left.pop(0)
        return {**self._fixed[name], **(self._searches[name].suggest(trial_id) or {})}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the study how the trial goes."""
        self._searches[self._study_of[trial_id]].on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """Tell the study how the trial ended."""
        self._searches[self._study_of[trial_id]].on_trial_complete(trial_id, result, error)


def _close_studies(storage: optuna.storages.BaseStorage) -> dict[str, int]:
    """How many draws each study holds already; those that an interruption left under way are failed, not waited for."""
    n_draws = {}
    for summary in optuna.get_all_study_summaries(storage):
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        for draw in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            study.tell(draw.number, state=optuna.trial.TrialState.FAIL)
        n_draws[summary.study_name] = len(study.trials)
    return n_draws


def _sampler(name: str, n_before: int) -> optuna.samplers.BaseSampler:
    """TPE, seeded by the study's name and length, so that a study that goes on does not draw its first points again.

    Draws under way count as poor ones, so that parallel draws spread out.
    """
    seed = int(hashlib.sha256(f"{name} {n_before}".encode()).hexdigest()[:8], 16)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
