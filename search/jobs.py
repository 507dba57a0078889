"""The jobs that are said by one configuration file, and what runs each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import Spec
from search import profile
from search.backend import Backend
from search.pipeline import job as pipeline
from search.pipeline.spec import PipelineSpec
from search.placement import job as placement
from search.placement.spec import PlacementSpec
from search.profile import ProfileSpec
from search.progressive import job as progressive
from search.progressive.spec import ProgressiveSpec
from search.supernet.report import divergence
from search.supernet.spec import SupernetSpec
from search.validate import job as validate
from search.validate.spec import ValidateSpec


@dataclass(frozen=True)
class Job:
    """What describes a job, what runs it in a folder and returns the exit status, and a line of help."""

    spec: type[Spec]
    run: Callable[[Any, Path, Backend], int]
    help: str


def _train_supernet(spec: SupernetSpec, out: Path, backend: Backend) -> int:
    return 1 if divergence(backend.train_supernet(spec, out)) else 0


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
