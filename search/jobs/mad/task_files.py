"""Reads the task files in `configs/tasks/`, and merges a job's own keys into them."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from configs import Problems, read_yaml
from configs.errors import known_names, raise_unknown
from configs.merge import merge

_FILES = Path(__file__).parents[3] / "configs" / "tasks"

SUITE = (
    "compression",
    "fuzzy-in-context-recall",
    "in-context-recall",
    "memorization",
    "noisy-in-context-recall",
    "selective-copying",
)
"""The tasks that the MAD score is of; those beside them are run when they are named."""


@cache
def task_names() -> tuple[str, ...]:
    """The tasks that can be named: the files in `configs/tasks/`."""
    return tuple(sorted(path.stem for path in _FILES.glob("*.yaml")))


def task_file(name: str) -> dict[str, Any]:
    """What the file of a task says; ConfigError if there is none."""
    if name.replace("_", "-") not in task_names():
        raise_unknown("task", name, task_names())
    return read_yaml(_FILES / f"{name.replace('_', '-')}.yaml")


def select(raw: Mapping[str, Any], only: Any, problems: Problems) -> dict[str, Any]:
    """The tasks named in `only`, with what is said of them; one of which nothing is said is taken as its file has it."""
    if only is None:
        return dict(raw)
    if not isinstance(only, list | tuple) or not only:
        problems.add(("only",), f"expected a list of tasks, got {only!r}")
        return dict(raw)
    said = {str(name).replace("_", "-"): override for name, override in raw.items()}
    return {str(name): said.get(str(name).replace("_", "-"), {}) for name in only}


def expand_tasks(raw: Mapping[str, Any], changes: Any, problems: Problems) -> dict[str, Any]:
    """Lay each task's own keys over its file, and keep the difficulty changes that are asked for."""
    tasks: dict[str, Any] = {}
    for given, override in raw.items():
        name = str(given).replace("_", "-")
        if name in tasks:
            problems.add(("tasks", given), f"the task '{name}' is given twice")
        elif name in task_names():
            tasks[name] = _over_file(name, {} if override is None else override)
        elif isinstance(override, dict) and "task" in override:
            tasks[name] = override  # a task that has no file, said in full
        else:
            problems.add(("tasks", given), f"unknown task '{given}'; {known_names(name, task_names())}")
    if changes == "all":
        return tasks
    if changes != "none" and not isinstance(changes, list | tuple):
        problems.add(("changes",), f"expected all, none or a list, got {changes!r}")
        return tasks
    wanted = [] if changes == "none" else [str(change) for change in changes]
    offered = {key for task in tasks.values() for key in _changes(task) or ()}
    for change in (change for change in wanted if tasks and change not in offered):
        problems.add(("changes",), f"no task has the change '{change}'; {known_names(change, offered)}")
    return {name: _keep(task, wanted) for name, task in tasks.items()}


def _over_file(name: str, override: Any) -> Any:
    """A task's own keys on top of those of its file; changes are not mixed, so that a saved task comes back as it was."""
    task = merge(task_file(name), override)
    return {**task, "changes": override["changes"]} if _changes(override) is not None else task


def _changes(task: Any) -> dict[str, Any] | None:
    changes = task.get("changes") if isinstance(task, dict) else None
    return changes if isinstance(changes, dict) else None


def _keep(task: Any, wanted: Sequence[str]) -> Any:
    changes = _changes(task)
    return {**task, "changes": {key: changes[key] for key in changes if key in wanted}} if changes else task
