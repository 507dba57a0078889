"""A task, its data and its difficulty settings, as a spec."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, PositiveInt, ValidationError, WithJsonSchema, model_validator

from configs import Problems, Spec
from configs.errors import known_names, message_of
from configs.merge import merge
from tasks import TASKS, Split, Task


def _number_or_name(value: Any) -> int | float | str:
    if not isinstance(value, int | float | str):
        raise ValueError("a number or a name is expected")  # noqa: TRY004 - pydantic wants a ValueError
    return value


NumberOrName = Annotated[int | float | str, PlainValidator(_number_or_name), WithJsonSchema({"type": ["number", "string"]})]
"""An integer, a float or a text, as it was written."""


class TaskSpec(Spec):
    """A task, its data, and the changes that make it harder, one at a time around the baseline.

    A change is an option of the task, or a number of instances: `{seq_len: [256, 512], n_train: [800]}`. `test_seq_len` is the
    `seq_len` of the test split alone: how does what was learned at one length do at another? A longer test asks only at the
    positions that training did not have. Null: the same for all splits.
    """

    task: TASKS.field()  # type: ignore[valid-type]
    n_train: PositiveInt = 12800
    n_validation: PositiveInt = 1280
    n_test: PositiveInt = 1280
    test_seq_len: PositiveInt | None = None
    changes: dict[str, tuple[NumberOrName, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        problems = Problems()
        try:
            self.instance()
        except ValueError as error:
            problems.add(("task",), str(error))
            problems.raise_if_any("TaskSpec")
        if message := self._check_test_length():
            problems.add(("test_seq_len",), message)
        seen: dict[TaskSpec, str] = {self.model_copy(update={"changes": {}}): "the baseline"}
        known = [*self.task.options(), "n_train", "n_validation", "n_test", "test_seq_len"]
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

    def _check_test_length(self) -> str | None:
        """Why there cannot be such a test, or None."""
        task = self.instance()
        if self.test_seq_len is None:
            return None
        if task.read_out == "autoencoder":
            return f"{self.task.kind} has one length: its head gives back all positions from a table of so many"
        if self.test_seq_len == task.seq_len:
            return f"{task.seq_len} is the task's seq_len already; leave it out"
        try:
            self.instance("test")
        except ValueError as error:
            return str(error)
        return None

    def _changed(self, name: str, value: NumberOrName) -> TaskSpec:
        change = {name: value} if name in TaskSpec.model_fields else {"task": {name: value}}
        return TaskSpec.model_validate(merge({**self.to_dict(), "changes": {}}, change))

    def settings(self) -> dict[str, TaskSpec]:
        """The baseline and each change, by label (`baseline`, `seq_len=256`), without changes of their own."""
        changed = {f"{name}={value}": self._changed(name, value) for name, values in self.changes.items() for value in values}
        return {"baseline": self.model_copy(update={"changes": {}}), **changed}

    def instance(self, split: Split = "train") -> Task:
        """The task that a split is drawn from; ValueError if its options contradict each other."""
        is_other = split == "test" and self.test_seq_len is not None
        return TASKS.build(self.task.model_copy(update={"seq_len": self.test_seq_len}) if is_other else self.task)

    def longest_for(self, setting: TaskSpec) -> int:
        """The length to build a model of one of the settings for: its own, or the longest test of any of them.

        So settings that differ in the test alone are of one model, also where a model depends on its greatest length.
        """
        tests = [self.test_seq_len, *self.changes.get("test_seq_len", ())]
        return max(setting.instance().seq_len, *(int(length) for length in tests if length is not None), 0)
