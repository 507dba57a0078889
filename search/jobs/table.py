"""JOBS: each job's name and line of help; its spec class and run function are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from configs import Spec
    from search.jobs.backend import Backend

JOBS = {
    "hybridize": "from a trained model to a hybrid: which of its layers may become cheap, searched and distilled",
    "pipeline": "supernet, search, and the racks that were found beside their rivals",
    "supernet": "train one set of weights for every placement of a space",
    "progressive": "grow a rack stack by stack on a trunk that is frozen, adapted, or trained on",
    "placement": "search placements of a trained supernet under budgets",
    "validate": "train every placement of a small space: does the search find the best?",
    "profile": "time every mixer of a space on this device",
}
"""A line of help for each. A job is a folder with `spec.py` and `job.py`."""


def job_spec(name: str) -> type[Spec]:
    """What describes a job, `mad` too."""
    spec: type[Spec] = resolve_name(f"search.jobs.{name}.spec:{name.capitalize()}Spec")
    return spec


def job_run(name: str) -> Callable[[Any, Path, Backend], int]:
    """What runs a job, as its spec says, in a folder, and returns the exit status."""
    run: Callable[[Any, Path, Backend], int] = resolve_name(f"search.jobs.{name}.job:run")
    return run
