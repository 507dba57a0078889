"""Tries a trial or a pack, here or in a process of its own: one that raises, dies, leaves or hangs is a row that says so."""

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from configs.records import Row
from search.jobs.mad.run_trials import work
from search.jobs.mad.trial import Trial
from search.runs.errors import ends_the_run
from search.runs.isolation import IsolationSpec, error_text, marker, run_trial


def run_contained(
    trials: Sequence[Trial],
    *,
    limits: IsolationSpec,
    markers: Path | None = None,
    dumps: Callable[[Any], bytes] = pickle.dumps,
    on_evaluation: Callable[[Trial, dict[str, float]], None],
    **options: Any,
) -> list[Row]:
    """`run_trials` within limits; whatever would end its process or thread without a word is a TrialError.

    Args:
        trials: one, or several to be packed.
        limits: whether they have a process of their own, and how long they may take.
        markers: the run's folder, where it runs in this process; there lies what tells of trials that the process died of.
        dumps: how they are written for a process of their own.
        on_evaluation: as of `run_trials`.
        options: the others of `run_trials`.
    """

    def tell(told: tuple[int, dict[str, float]]) -> None:
        on_evaluation(trials[told[0]], told[1])

    keys = [] if markers is None else [marker(markers, trial.spec.fingerprint()) for trial in trials]
    return run_trial(partial(work, trials, options), tell, limits, markers=keys, n_trials=len(trials), dumps=dumps)


def attempt(trials: Sequence[Trial], **options: Any) -> list[Row]:
    """`run_contained`, where a trial that fails becomes a row that says so; if a pack does, its trials run one by one."""
    try:
        return run_contained(trials, **options)
    except Exception as error:
        if ends_the_run(error):
            raise
        if len(trials) > 1:
            return [row for trial in trials for row in attempt([trial], **options)]
        return failed_rows(trials, error_text(error))


def failed_rows(trials: Sequence[Trial], error: str) -> list[Row]:
    """Rows for trials that failed."""
    return [{**trial.labels(), "status": "failed", "error": error, "history": []} for trial in trials]
