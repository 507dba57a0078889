"""Trains the candidates for a rack's next stack on Ray: trials side by side, which read one cache of the trunk's output."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from configs.records import Row, kept_json
from launch.cluster import cluster
from launch.tune.train_many import Summaries, train_side_by_side
from search.jobs.progressive.candidates import CandidateSpec, limits_of, run_candidate
from search.jobs.progressive.report import RESULT
from search.runs.report import outcome
from search.training.loop import OnEvaluation


def train_candidates_on_ray(candidates: Mapping[str, CandidateSpec], out: Path) -> dict[str, Row]:
    """Train what the folders below `out`, one a candidate, do not hold yet; the rows by name.

    Workers read the run's folder and the cache under the same path: on several machines they have to lie on storage that they
    share. The pages of a cache are in memory once on each machine, however many trials read it.

    Raises:
        ConfigError: if a worker asks for more than the cluster has, or a folder belongs to another candidate.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    told = Summaries(len(candidates))
    for name, spec in candidates.items():
        if kept_json(out / name / RESULT, partial(told.say_of, name), fingerprint=spec.fingerprint()) is not None:
            told.known(name, outcome(run_candidate(spec, out / name)))
    left = {name: spec for name, spec in candidates.items() if name not in told.rows}
    if left:
        with cluster() as resources:
            train_side_by_side(left, out, _trial, told, resources, limits=limits_of(candidates))
    return {name: told.rows[name] for name in candidates}


def _trial(spec: dict[str, Any], out: Path, on_evaluation: OnEvaluation) -> Row:
    return run_candidate(CandidateSpec.model_validate(spec), out, on_evaluation=on_evaluation)
