"""A custom mapping from stacks to time steps as a configuration says it: a name, the time steps, or, in Python, a function."""

import math
import re
from collections.abc import Callable
from numbers import Real
from typing import Annotated

from pydantic import Field, NonNegativeInt
from pydantic.json_schema import SkipJsonSchema

from configs.errors import ConfigError
from configs.functions import called_by_name
from configs.limits import shortened

TimeMapping = Callable[[int, int, int], float]
"""Called by the names stack_idx, max_stacks, num_time_steps: a time step."""

CustomMapping = str | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | SkipJsonSchema[TimeMapping]
"""The name of a file in `tasks/time_mappings/`, a time step for each stack, or a function, which no file can name."""

WAYS_TO_SAY = "the name of a file in tasks/time_mappings, a list of time steps, or in Python the function itself"


def mapping_misfit(mapping: CustomMapping | None, n_stacks: int, n_time_steps: int) -> str | None:
    """Why a mapping can be none of so many stacks, as far as that is known without looking for its name."""
    if isinstance(mapping, str) and not re.fullmatch(r"[\w-]+", mapping):
        return f"'{shortened(mapping)}': a file can name no code: give {WAYS_TO_SAY}"
    if isinstance(mapping, tuple) and len(mapping) < n_stacks:
        return f"{len(mapping)} time steps for {n_stacks} stacks: each needs one"
    if isinstance(mapping, tuple) and max(mapping) >= n_time_steps:
        return f"{max(mapping)} is above the last time step: num_time_steps is {n_time_steps}, and they count from 0"
    try:
        _ = time_table(mapping, n_stacks, n_time_steps) if callable(mapping) else None
    except ValueError as error:
        return str(error)
    return None


def time_table(mapping: TimeMapping, n_stacks: int, n_time_steps: int) -> tuple[int, ...]:
    """What a function says of each stack, rounded and kept within [0, n_time_steps - 1].

    Raises:
        ValueError: for a function of something else, and one that returns what is no number.
    """
    try:
        called = called_by_name(mapping, "stack_idx", "max_stacks", "num_time_steps")
    except ConfigError as error:
        raise ValueError(f"the custom mapping {error}") from None
    steps = [called(stack_idx=index, max_stacks=n_stacks, num_time_steps=n_time_steps) for index in range(n_stacks)]
    for index, step in enumerate(steps):
        if not isinstance(step, Real) or not math.isfinite(step):
            raise ValueError(f"the custom mapping must return a number; got {step!r} for stack {index}")
    return tuple(min(max(round(float(step)), 0), n_time_steps - 1) for step in steps)
