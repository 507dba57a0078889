"""Trains many small models side by side on Ray: each is a Tune trial, and worker processes go from one to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import tune
from ray.tune import Callback

from configs import ConfigError
from launch.cluster import work_where_the_driver_does, worker_resources
from launch.tune.searchers import ListSearch
from launch.tune.sessions import error_of, fit, next_session
from launch.tune.tensorboard import TensorBoardLog
from search.runs.console import Progress
from search.runs.report import outcome, outcome_text
from search.runs.run_folder import Row, to_json
from search.runs.workers import WorkersSpec
from search.training.loop import OnEvaluation
from search.training.spec import TrainSpec
from search.training.state import TrainState


class TrainOne(Protocol):
    """What a spec says of how its model is trained."""

    @property
    def workers(self) -> WorkersSpec:
        """What each worker gets."""

    @property
    def train(self) -> TrainSpec:
        """On which device."""

    def to_dict(self) -> dict[str, Any]:
        """The spec in plain values."""


ModelTrial = Callable[[dict[str, Any], Path, OnEvaluation], Row]
"""Trains what a dumped spec describes in a folder, or takes what is there; the summary."""


def train_side_by_side(
    left: Mapping[str, TrainOne], out: Path, trial: ModelTrial, told: Summaries, resources: Mapping[str, float]
) -> None:
    """Train models by name, each in the folder of its name; `told` gets their summaries.

    Raises:
        ConfigError: if a worker asks for more than the cluster has, or a folder belongs to another run.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    if left:
        fit(_tuner(left, out, trial, told, resources))
    if told.refused:
        raise ConfigError(told.refused)
    if not left.keys() <= told.rows.keys():
        raise KeyboardInterrupt  # Tune turns the first Ctrl-C into an early, orderly end


def _tuner(
    left: Mapping[str, TrainOne], out: Path, trial: ModelTrial, told: Summaries, resources: Mapping[str, float]
) -> tune.Tuner:
    workers = [worker_resources(spec.workers, spec.train.device, resources) for spec in left.values()]
    specs = {name: spec.to_dict() for name, spec in left.items()}
    n_threads = max(max(1, int(spec.workers.cpus)) for spec in left.values())
    trainable = tune.with_parameters(_train, specs=specs, out=out.resolve(), trial=trial, n_threads=n_threads)
    return tune.Tuner(
        tune.with_resources(trainable, {name: max(worker[name] for worker in workers) for name in workers[0]}),
        tune_config=tune.TuneConfig(
            search_alg=ListSearch([{"name": name} for name in left]), num_samples=len(left), reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=next_session(out / "tune"),
            storage_path=str((out / "tune").resolve()),
            failure_config=tune.FailureConfig(max_failures=max(spec.workers.max_failures for spec in left.values())),
            callbacks=[told, TensorBoardLog("step")],
            verbose=0,
        ),
    )


def _train(config: dict[str, Any], specs: dict[str, Any], out: Path, trial: ModelTrial, n_threads: int) -> None:
    """What a worker does for a trial; the last report carries the summary."""
    work_where_the_driver_does()
    torch.set_num_threads(n_threads)

    def report(member: TrainState, row: Row) -> None:
        del member
        tune.report(_numbers(row))

    try:
        summary = trial(specs[config["name"]], out / config["name"], report)
    except ConfigError as error:
        tune.report({"refused": str(error)})
    else:
        step = {"step": summary["steps"]} if "steps" in summary else {}  # not of what could not be trained
        tune.report({**step, **_numbers(summary), "summary": to_json(summary)})


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


class Summaries(Callback):
    """Collects what Tune hears from the trials, and tells it."""

    def __init__(self, rows: dict[str, Row], n_trials: int) -> None:
        self.rows, self.refused = rows, ""
        self.progress = Progress(n_trials, len(rows))

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for `Tuner.restore`; a resumed run looks into the folders instead."""
        return {}

    def say_of(self, name: str, text: str) -> None:
        """A line about one model."""
        self.progress.say(f"{name}: {text}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A model that is trained, or that could not be for what its folder holds."""
        del iteration, trials, info
        last = trial.last_result or {}
        self.refused = self.refused or last.get("refused", "")
        if "summary" in last:
            self.ended(trial.config["name"], outcome(json.loads(last["summary"])))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A model that failed for the last time."""
        del iteration, trials, info
        self.ended(trial.config["name"], {"error": error_of(trial)})

    def ended(self, name: str, row: Row) -> None:
        """A model is trained, or has failed for good."""
        self.rows[name] = row
        self.progress.count(name, outcome_text(row))
