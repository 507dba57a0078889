"""Trains many fixed racks on Ray: each is a Tune trial, and worker processes go from one to the next."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune import Callback
from ray.tune.logger import TBXLoggerCallback

from configs import ConfigError
from launch.cluster import cluster, work_where_the_driver_does, worker_resources
from launch.searchers import ListSearch
from launch.train import train_on_ray
from launch.tuning import error_of, next_session
from search.backend import outcome, outcome_text
from search.member import Member
from search.parallel import WorkersError
from search.progress import duration, make_console
from search.results import Row, to_json
from search.supernet.job import run, train_here, train_rack
from search.supernet.report import RESULTS
from search.supernet.spec import SupernetSpec


def train_racks_on_ray(runs: Mapping[str, SupernetSpec], out: Path) -> dict[str, Row]:
    """Train what the folders below `out`, one a name, do not hold yet.

    Workers write them under the same path: on several machines it has to lie on storage that they share. What a run asks of its
    workers stands in `workers`: those with `n` of 1 are Tune's and run side by side, then those with more are trained by Ray
    Train, one after the other. A run that raises, or whose worker dies, is tried again `workers.max_failures` times and goes on
    from its checkpoint.

    Returns:
        The summaries by name; that of a run that failed or diverged has its text under `error`, and nothing else.

    Raises:
        ConfigError: if a worker asks for more than the cluster has, or a folder belongs to another run.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    finished = {name for name in runs if (out / name / RESULTS).exists()}
    told = Summaries({name: outcome(train_rack(runs[name], out / name)) for name in runs if name in finished}, len(runs))
    left = {name: spec for name, spec in runs.items() if name not in finished}
    if finished:
        told.say(f"going on: {len(finished)} of {len(runs)} racks are trained")
    if left:
        with cluster() as resources:
            _train_side_by_side({name: spec for name, spec in left.items() if spec.workers.n == 1}, out, told, resources)
            _train_in_turn({name: spec for name, spec in left.items() if spec.workers.n > 1}, out, told)
    return {name: told.rows[name] for name in runs}


def _train_side_by_side(left: Mapping[str, SupernetSpec], out: Path, told: Summaries, resources: Mapping[str, float]) -> None:
    if left:
        _tuner(left, out, told, resources).fit()
    if told.refused:
        raise ConfigError(told.refused)
    if not left.keys() <= told.rows.keys():
        raise KeyboardInterrupt  # Tune turns the first Ctrl-C into an early, orderly end


def _train_in_turn(left: Mapping[str, SupernetSpec], out: Path, told: Summaries) -> None:
    for name, spec in left.items():
        try:
            row = outcome(train_on_ray(spec, out / name, partial(told.say_of, name)))
        except WorkersError as error:
            row = {"error": str(error)}
        told.ended(name, row)


def _tuner(left: Mapping[str, SupernetSpec], out: Path, told: Summaries, resources: Mapping[str, float]) -> tune.Tuner:
    workers = [worker_resources(spec.workers, spec.train.device, resources) for spec in left.values()]
    specs = {name: spec.to_dict() for name, spec in left.items()}
    trainable = tune.with_parameters(_train, specs=specs, out=out.resolve())
    return tune.Tuner(
        tune.with_resources(trainable, {name: max(worker[name] for worker in workers) for name in workers[0]}),
        tune_config=tune.TuneConfig(
            search_alg=ListSearch([{"rack": name} for name in left]), num_samples=len(left), reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=next_session(out / "tune"),
            storage_path=str((out / "tune").resolve()),
            failure_config=tune.FailureConfig(max_failures=max(spec.workers.max_failures for spec in left.values())),
            callbacks=[told, TBXLoggerCallback()],
            verbose=0,
        ),
    )


def _train(config: dict[str, Any], specs: dict[str, Any], out: Path) -> None:
    """What a worker does for a trial; the last report carries the summary."""
    work_where_the_driver_does()
    spec = SupernetSpec.model_validate(specs[config["rack"]])
    torch.set_num_threads(max(1, int(spec.workers.cpus)))

    def report(member: Member, row: Row) -> None:
        del member
        tune.report(_numbers(row))

    try:
        summary = run(spec, out / config["rack"], partial(train_here, on_evaluation=report), say=lambda _: None)
    except ConfigError as error:
        tune.report({"refused": str(error)})
    else:
        tune.report({**_numbers(summary), "summary": to_json(summary)})


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}


class Summaries(Callback):
    """Collects what Tune hears from the racks, and tells it."""

    def __init__(self, rows: dict[str, Row], n_racks: int) -> None:
        self.rows, self.refused = rows, ""
        self._n_racks, self._n_before = n_racks, len(rows)
        self._started, self._console = time.monotonic(), make_console()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for `Tuner.restore`; a resumed run looks into the folders instead."""
        return {}

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, markup=False)

    def say_of(self, name: str, text: str) -> None:
        """A line about one rack."""
        self.say(f"{name}: {text}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A rack that is trained, or that could not be for what its folder holds."""
        del iteration, trials, info
        last = trial.last_result or {}
        self.refused = self.refused or last.get("refused", "")
        if "summary" in last:
            self.ended(trial.config["rack"], outcome(json.loads(last["summary"])))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A rack that failed for the last time."""
        del iteration, trials, info
        self.ended(trial.config["rack"], {"error": error_of(trial)})

    def ended(self, name: str, row: Row) -> None:
        """A rack is trained, or has failed for good."""
        self.rows[name] = row
        n_new, n_left = len(self.rows) - self._n_before, self._n_racks - len(self.rows)
        seconds = (time.monotonic() - self._started) / n_new * n_left
        rest = f" (about {duration(seconds)} to go)" if n_left else ""
        self.say(f"[{len(self.rows)}/{self._n_racks}] {name}: {outcome_text(row)}{rest}")
