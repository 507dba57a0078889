"""Trains many fixed racks on Ray: those of one worker side by side, those of several one after the other."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from configs import ConfigError
from configs.records import Row
from launch.cluster import cluster
from launch.train.trainer import train_on_ray
from launch.tune.train_many import Summaries, train_side_by_side
from search.jobs.supernet.job import train_supernet, train_supernet_here
from search.jobs.supernet.report import finished
from search.jobs.supernet.spec import SupernetSpec
from search.runs.isolation import NO_LIMITS, IsolationSpec
from search.runs.report import outcome
from search.runs.workers import WorkersError
from search.training.loop import OnEvaluation


def train_racks_on_ray(runs: Mapping[str, SupernetSpec], out: Path, limits: IsolationSpec = NO_LIMITS) -> dict[str, Row]:
    """Train what the folders below `out`, one a name, do not hold yet.

    Workers write them under the same path: on several machines it has to lie on storage that they share. What a run asks of its
    workers stands in `workers`: those with `n` of 1 are Tune's and run side by side, then those with more are trained by Ray
    Train, one after the other. A run that raises, or whose worker dies, is tried again `workers.max_failures` times and goes on
    from its checkpoint; not one that takes longer than the limits allow.

    Returns:
        The summaries by name; that of a run that failed or diverged has its text under `error`, and nothing else.

    Raises:
        ConfigError: if a worker asks for more than the cluster has, a folder belongs to another run, or runs of several workers
            are to have a process of their own or a limit of time.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    if limits.isolates and (several := [name for name, spec in runs.items() if spec.workers.n > 1]):
        text = "isolate_trials and trial_timeout are for racks of one worker each"
        raise ConfigError(f"{text}: {several[0]} has workers.n = {runs[several[0]].workers.n}")
    told = Summaries(len(runs))
    for name, spec in runs.items():
        if row := finished(spec, out / name, partial(told.say_of, name)):
            told.known(name, outcome(row))
    left = {name: spec for name, spec in runs.items() if name not in told.rows}
    if told.rows:
        told.progress.say(f"going on: {len(told.rows)} of {len(runs)} racks are trained")
    if left:
        with cluster() as resources:
            alone = {name: spec for name, spec in left.items() if spec.workers.n == 1}
            train_side_by_side(alone, out, _trial, told, resources, limits=limits)
            _train_in_turn({name: spec for name, spec in left.items() if spec.workers.n > 1}, out, told)
    return {name: told.rows[name] for name in runs}


def _train_in_turn(left: Mapping[str, SupernetSpec], out: Path, told: Summaries) -> None:
    for name, spec in left.items():
        try:
            row = outcome(train_on_ray(spec, out / name, partial(told.say_of, name)))
        except WorkersError as error:
            row = {"error": str(error)}
        told.ended(name, row)


def _trial(spec: dict[str, Any], out: Path, on_evaluation: OnEvaluation) -> Row:
    train = partial(train_supernet_here, on_evaluation=on_evaluation)
    return train_supernet(SupernetSpec.model_validate(spec), out, train, say=lambda _: None)
