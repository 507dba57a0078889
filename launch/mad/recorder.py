"""A Tune callback: writes finished MAD trials to the log and shows them on the terminal."""

import json
from pathlib import Path
from typing import Any

from ray.tune import Callback

from launch.mad.worker import ROWS, name_of, points_of
from launch.tune.searchers import Config
from launch.tune.sessions import error_of
from search.jobs.mad.job import forget
from search.jobs.mad.run_trials import failed_rows
from search.jobs.mad.trial import Trial
from search.runs.console import Progress, label
from search.runs.run_folder import Row, TrialLog


class Recorder(Callback):
    """Puts what Tune hears from the trials into the log and onto the terminal."""

    def __init__(self, log: TrialLog, progress: Progress, settings: dict[str, Trial], out: Path) -> None:
        self.n_ended = 0
        self._out = out
        self._log, self._progress, self._settings = log, progress, settings

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for `Tuner.restore`; a resumed run reads the trial log instead."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """An evaluation, or the end of a trial with its rows."""
        del iteration, trials, info
        config = trial.config
        if ROWS not in result:
            n_steps = self._settings[name_of(config)].spec.n_steps
            self._progress.moved(trial.trial_id, label(config), result, n_steps)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that returned, with its rows, or one that ASHA stopped."""
        del iteration, trials, info
        last = trial.last_result or {}
        self._end(trial, json.loads(last[ROWS]) if ROWS in last else [self._pruned(trial.config, last)])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that raised or died, for the last time."""
        del iteration, trials, info
        self._end(trial, failed_rows(self._trials(trial.config), error_of(trial)))

    def _trials(self, config: Config) -> list[Trial]:
        return [self._settings[name_of(config)].at(*point) for point in points_of(config)]

    def _pruned(self, config: Config, last: dict[str, Any]) -> Row:
        (trial,) = self._trials(config)
        held_out = {f"held_out_{name}": last.get(name) for name in ("accuracy", "loss")}
        return {**trial.labels(), "status": "pruned", "error": None, **held_out, "steps": last.get("step"), "history": []}

    def _end(self, trial: Any, rows: list[Row]) -> None:
        self.n_ended += 1
        self._progress.ended(trial.trial_id)
        for row in rows:
            self._log.add(row)
            self._progress.finished(row)
        forget(self._trials(trial.config), self._out)
