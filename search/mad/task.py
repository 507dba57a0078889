"""A task of the suite and its difficulty settings, read from `configs/tasks/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, PositiveInt, ValidationError, model_validator

from configs import Problems, Spec, read_yaml
from configs.errors import known_names, message_of, raise_unknown
from configs.merge import merge
from tasks import TASKS, Task

FILES = Path(__file__).parent.parent.parent / "configs" / "tasks"


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise ValueError("a number is expected")  # noqa: TRY004 - pydantic wants a ValueError
    return value


Number = Annotated[float, PlainValidator(_number)]
"""An integer or a float, as it was written."""


class TaskSpec(Spec):
    """A task, its data, and the changes that make it harder, one at a time around the baseline.

    A change is an option of the task, or a number of instances: `{seq_len: [256, 512], n_train: [800]}`.
    """

    task: TASKS.field()  # type: ignore[valid-type]
    n_train: PositiveInt = 12800
    n_validation: PositiveInt = 1280
    n_test: PositiveInt = 1280
    changes: dict[str, tuple[Number, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        problems = Problems()
        try:
            self.instance()
        except ValueError as error:
            problems.add(("task",), str(error))
            problems.raise_if_any("TaskSpec")
        seen: dict[TaskSpec, str] = {self.model_copy(update={"changes": {}}): "the baseline"}
        known = [*self.task.options(), "n_train", "n_validation", "n_test"]
        for name, values in self.changes.items():
            if name not in known:
                problems.add(("changes", name), f"'{name}' cannot be changed; {known_names(name, known)}")
                continue
            for index, value in enumerate(values):
                try:
                    changed = self._changed(name, value)
                except ValidationError as error:
                    problems.add(("changes", name, index), message_of(error.errors()[0]))
                    continue
                if changed in seen:
                    problems.add(("changes", name, index), f"{value} is the same setting as {seen[changed]}")
                seen.setdefault(changed, f"{name}={value}")
        problems.raise_if_any("TaskSpec")
        return self

    def _changed(self, name: str, value: float) -> TaskSpec:
        change = {name: value} if name in TaskSpec.model_fields else {"task": {name: value}}
        return TaskSpec.model_validate(merge({**self.to_dict(), "changes": {}}, change))

    def settings(self) -> dict[str, TaskSpec]:
        """The baseline and each change, by label (`baseline`, `seq_len=256`), without changes of their own."""
        changed = {f"{name}={value}": self._changed(name, value) for name, values in self.changes.items() for value in values}
        return {"baseline": self.model_copy(update={"changes": {}}), **changed}

    def instance(self) -> Task:
        """The task that the spec describes; ValueError if its options contradict each other."""
        return TASKS.build(self.task)


@cache
def task_names() -> tuple[str, ...]:
    """The tasks of the suite: the files in `configs/tasks/`."""
    return tuple(sorted(path.stem for path in FILES.glob("*.yaml")))


def task_file(name: str) -> dict[str, Any]:
    """What the file of a task says; ConfigError if there is none."""
    if name.replace("_", "-") not in task_names():
        raise_unknown("task", name, task_names())
    return read_yaml(FILES / f"{name.replace('_', '-')}.yaml")


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
            tasks[name] = override  # a task that is not of the suite, said in full
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
