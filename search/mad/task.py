"""A task of the suite and its difficulty settings, read from `configs/tasks/`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from configs import Problems, Spec, read_yaml
from configs.errors import known_names
from configs.merge import merge
from tasks import TASKS, Task

FILES = Path(__file__).parent.parent.parent / "configs" / "tasks"


class TaskSpec(Spec):
    """A task, its data, and the changes that make it harder, one at a time around the baseline.

    A change is an option of the task, or a number of instances: `{seq_len: [256, 512], n_train: [800]}`.
    """

    task: TASKS.field()  # type: ignore[valid-type]
    n_train: PositiveInt = 12800
    n_validation: PositiveInt = 1280
    n_test: PositiveInt = 1280
    changes: dict[str, tuple[int | float, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        problems = Problems()
        try:
            self.instance()
        except ValueError as error:
            problems.add(("task",), str(error))
            problems.raise_if_any("TaskSpec")
        for name, values in self.changes.items():
            for index, value in enumerate(values):
                try:
                    self._changed(name, value)
                except ValidationError as error:
                    problems.adopt(("changes", name, index), error)
        problems.raise_if_any("TaskSpec")
        return self

    def _changed(self, name: str, value: float) -> TaskSpec:
        change = {name: value} if name in TaskSpec.model_fields else {"task": {name: value}}
        return TaskSpec.model_validate(merge({**self.to_dict(), "changes": {}}, change))

    def settings(self) -> dict[str, TaskSpec]:
        """The baseline and each change, by label (`baseline`, `seq_len=256`), without changes of their own."""
        changed = {f"{name}={value:g}": self._changed(name, value) for name, values in self.changes.items() for value in values}
        return {"baseline": self.model_copy(update={"changes": {}}), **changed}

    def instance(self) -> Task:
        """The task that the spec describes; ValueError if its options contradict each other."""
        return TASKS.build(self.task)


@cache
def task_names() -> tuple[str, ...]:
    """The tasks of the suite: the files in `configs/tasks/`."""
    return tuple(sorted(path.stem for path in FILES.glob("*.yaml")))


def expand_tasks(raw: Mapping[str, Any], changes: Any, problems: Problems) -> dict[str, Any]:
    """Lay each task's own keys over its file, and keep the difficulty changes that are asked for."""
    tasks = {}
    for given, override in raw.items():
        name = str(given).replace("_", "-")
        if name in task_names():
            tasks[name] = _keep(merge(read_yaml(FILES / f"{name}.yaml"), override or {}), changes)
        elif isinstance(override, dict) and "task" in override:
            tasks[name] = _keep(override, changes)  # a task that is not of the suite, said in full
        else:
            problems.add(("tasks", given), f"unknown task '{given}'; {known_names(name, task_names())}")
    offered = {key for task in tasks.values() if isinstance(task.get("changes"), dict) for key in task["changes"]}
    if not (changes in ("all", "none") or isinstance(changes, list | tuple)):
        problems.add(("changes",), f"expected all, none or a list, got {changes!r}")
    elif isinstance(changes, list | tuple):
        for change in (change for change in changes if tasks and change not in offered):
            problems.add(("changes",), f"no task has the change '{change}'; {known_names(str(change), offered)}")
    return tasks


def _keep(task: dict[str, Any], changes: Any) -> dict[str, Any]:
    if changes == "all" or not isinstance(task.get("changes"), dict):
        return task
    return {**task, "changes": {key: values for key, values in task["changes"].items() if changes != "none" and key in changes}}
