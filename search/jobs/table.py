"""JOBS: each job's name, spec class and run function, for the command line and for `job:` in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import Spec
from search.jobs import profile
from search.jobs.backend import Backend
from search.jobs.pipeline import job as pipeline
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement import job as placement
from search.jobs.placement.spec import PlacementSpec
from search.jobs.profile import ProfileSpec
from search.jobs.progressive import job as progressive
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.validate import job as validate
from search.jobs.validate.spec import ValidateSpec
from search.runs.report import diverged_message


@dataclass(frozen=True)
class Job:
    """What describes a job, what runs it in a folder and returns the exit status, and a line of help."""

    spec: type[Spec]
    run: Callable[[Any, Path, Backend], int]
    help: str


def _train_supernet(spec: SupernetSpec, out: Path, backend: Backend) -> int:
    return 1 if diverged_message(backend.train_supernet(spec, out)) else 0


def _profile(spec: ProfileSpec, out: Path, backend: Backend) -> int:
    del backend  # what is timed is the device of this process
    return profile.run(spec, out)


JOBS = {
    "pipeline": Job(PipelineSpec, pipeline.run, "supernet, search, and the racks that were found beside their rivals"),
    "supernet": Job(SupernetSpec, _train_supernet, "train one set of weights for every placement of a space"),
    "progressive": Job(
        ProgressiveSpec, progressive.run, "grow a rack stack by stack on a trunk that is frozen, adapted, or trained on"
    ),
    "placement": Job(PlacementSpec, placement.run, "search placements of a trained supernet under budgets"),
    "validate": Job(ValidateSpec, validate.run, "train every placement of a small space: does the search find the best?"),
    "profile": Job(ProfileSpec, _profile, "time every mixer of a space on this device"),
}
