"""Trains many small models side by side on Ray: each is a Tune trial, and worker processes go from one to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import cloudpickle, tune
from ray.tune import Callback

from configs import ConfigError
from configs.records import Row, to_json
from launch.cluster import work_where_the_driver_does, worker_resources
from launch.tune.reports import FAILED, stoppable, tell_tune
from launch.tune.searchers import ListSearch
from launch.tune.sessions import error_of, fit, next_session
from launch.tune.tensorboard import TensorBoardLog
from search.runs.console import Progress
from search.runs.isolation import IsolationSpec, run_trial
from search.runs.own_process import Tell, TookTooLongError
from search.runs.report import outcome, outcome_text
from search.runs.workers import WorkersSpec
from search.training.loop import OnEvaluation
from search.training.memory import give_back
from search.training.spec import TrainSpec


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
    left: Mapping[str, TrainOne],
    out: Path,
    trial: ModelTrial,
    told: Summaries,
    resources: Mapping[str, float],
    *,
    limits: IsolationSpec,
) -> None:
    """Train models by name, each in the folder of its name; `told` gets their summaries.

    One that fails or dies is tried again, and goes on from its checkpoint; not one that takes longer than the limits allow.

    Raises:
        ConfigError: if a worker asks for more than the cluster has, or a folder belongs to another run.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    if left:
        fit(_tuner(left, out, trial, told, resources, limits=limits))
    if told.refused:
        raise ConfigError(told.refused)
    if not left.keys() <= told.rows.keys():
        raise KeyboardInterrupt  # Tune turns the first Ctrl-C into an early, orderly end


def _tuner(
    left: Mapping[str, TrainOne],
    out: Path,
    trial: ModelTrial,
    told: Summaries,
    resources: Mapping[str, float],
    *,
    limits: IsolationSpec,
) -> tune.Tuner:
    workers = [worker_resources(spec.workers, spec.train.device, resources) for spec in left.values()]
    specs = {name: spec.to_dict() for name, spec in left.items()}
    n_threads = max(spec.workers.n_threads for spec in left.values())
    given = {"specs": specs, "out": out.resolve(), "trial": trial, "n_threads": n_threads, "limits": limits}
    trainable = tune.with_parameters(_train, **given)
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


def _train(
    config: dict[str, Any], *, specs: dict[str, Any], out: Path, trial: ModelTrial, n_threads: int, limits: IsolationSpec
) -> None:
    """What a worker does for a trial; the last report carries the summary."""
    work_where_the_driver_does()
    torch.set_num_threads(n_threads)
    work = partial(_work, trial, specs[config["name"]], out / config["name"])
    give_back()  # each trial of a worker is a thread, and glibc keeps what each has freed for itself
    with stoppable():
        try:
            summary = run_trial(work, lambda row: tell_tune(_numbers(row)), limits, dumps=cloudpickle.dumps)
        except ConfigError as error:
            tell_tune({"refused": str(error), FAILED: True})
        except TookTooLongError as error:
            tell_tune({"summary": to_json({"error": str(error)}), FAILED: True})
        else:
            step = {"step": summary["steps"]} if "steps" in summary else {}  # not of what could not be trained
            tell_tune({**step, **_numbers(summary), "summary": to_json(summary), FAILED: "error" in summary})


def _work(trial: ModelTrial, spec: dict[str, Any], folder: Path, tell: Tell) -> Row:
    return trial(spec, folder, lambda _, row: tell(row))


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


class Summaries(Callback):
    """Collects what Tune hears from the trials, and tells it."""

    def __init__(self, n_trials: int) -> None:
        self.rows: dict[str, Row] = {}
        self.refused = ""
        self.progress = Progress(n_trials, 0)

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

    def known(self, name: str, row: Row) -> None:
        """A model whose folder holds what it has come to."""
        self.rows[name] = row
        self.progress.skip()

    def ended(self, name: str, row: Row) -> None:
        """A model is trained, or has failed for good."""
        self.rows[name] = row
        self.progress.count(name, outcome_text(row))
