"""Which tasks are trained at once, at which weights, and how many rows of a batch each gets."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs import Problems, Spec
from tasks import TASKS, Task


class TaskShare(Spec):
    """One task of a mixture: its share of the loss, and of the rows, is its weight over the sum of all weights."""

    task: TASKS.field()  # type: ignore[valid-type]
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        problems = Problems()
        if self.task is None:
            problems.add(("task",), "a task is expected")
            problems.raise_if_any("TaskShare")
        try:
            read_out = self.instance().read_out
        except ValueError as error:
            problems.add(("task",), str(error))
        else:
            if read_out != "language_model":
                problems.add(
                    ("task",), f"'{self.task.kind}' needs the head '{read_out}'; the tasks of a mixture share a language_model"
                )
        problems.raise_if_any("TaskShare")
        return self

    def instance(self) -> Task:
        """The task that the spec describes; ValueError if its options contradict each other."""
        return TASKS.build(self.task)


class MixtureSpec(Spec):
    """Tasks by name, and the rows of a batch over all tasks and ranks: `{tasks: {recall: {task: {...}}}, batch_size: 32}`."""

    tasks: Annotated[dict[str, TaskShare], Field(min_length=1)]
    batch_size: PositiveInt

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        missing = [name for name, n_rows in allot(self.shares(), self.batch_size).items() if n_rows == 0]
        if missing:
            problems = Problems()
            text = f"{self.batch_size} rows leave none for {', '.join(missing)}; give more rows, or a larger weight"
            problems.add(("batch_size",), text, self.batch_size)
            problems.raise_if_any("MixtureSpec")
        return self

    def shares(self) -> dict[str, float]:
        """The weights, normalised to a sum of one."""
        total = sum(share.weight for share in self.tasks.values())
        return {name: share.weight / total for name, share in self.tasks.items()}


def allot(shares: Mapping[str, float], n_rows: int) -> dict[str, int]:
    """Rows for each share, by the largest remainder; where remainders tie, the share named first gets the row."""
    exact = {name: share * n_rows for name, share in shares.items()}
    rows = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: rows[name] - exact[name])
    for name in by_remainder[: n_rows - sum(rows.values())]:
        rows[name] += 1
    return rows
