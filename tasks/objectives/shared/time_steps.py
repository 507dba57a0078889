"""Diffusion-like time steps of samples: given by the depth of the stack in training, or drawn."""

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from configs.time_steps import depth_step
from tasks.checks import check_integers
from tasks.objectives.shared.checks import check_choice
from tasks.objectives.shared.counters import uniform
from tasks.objectives.shared.objective import Draw
from tasks.rng import stream

MappingName = Literal["linear", "exponential", "custom"]
NoiseDirection = Literal["increasing", "decreasing"]
CustomMapping = Callable[[int, int, int], float]
"""(stack_idx, max_stacks, num_time_steps) to a time step."""


@dataclass(frozen=True, kw_only=True)
class DepthTime:
    """A time step for each stack, by the order in which stacks are created, wherever they are put.

    linear and exponential: see `configs.time_steps`. custom: what a function says, rounded and kept within [0, N - 1].

    Options:
        max_stacks: S, as many as there may be at last.
        mapping: one of the three.
        time_per_stack: the step of the linear mapping.
        n_time_steps: N; null is time_per_stack * (max_stacks - 1) + 1, so that the linear mapping ends at the last step.
        custom: of the custom mapping, a function or its place, `package.module:function`.
        noise_direction: `decreasing` gives the first stack what would be the last one's time, and so on. Where stacks are
            appended, the first one sees the noisiest samples then, as in a reverse diffusion.
    """

    max_stacks: int
    mapping: MappingName = "linear"
    time_per_stack: int = 100
    n_time_steps: int | None = None
    custom: str | CustomMapping | None = None
    noise_direction: NoiseDirection = "increasing"

    def __post_init__(self) -> None:
        check_integers(minimum=1, max_stacks=self.max_stacks, time_per_stack=self.time_per_stack)
        if self.n_time_steps is not None:
            check_integers(minimum=1, n_time_steps=self.n_time_steps)
        check_choice("mapping", self.mapping, get_args(MappingName))
        check_choice("noise_direction", self.noise_direction, get_args(NoiseDirection))
        if (self.mapping == "custom") != (self.custom is not None):
            raise ValueError(f"the mapping custom needs a function, the others have none; {self.mapping} got {self.custom!r}")
        rises = np.diff(self.table)
        if not ((rises > 0).all() or (rises < 0).all()):
            text = f"stacks do not have times in order: the time steps by creation are {list(self.table)} of {self.n_steps}"
            warnings.warn(f"{text}; give more n_time_steps or another mapping", stacklevel=3)

    @property
    def n_steps(self) -> int:
        """N, the number of time steps."""
        return self.time_per_stack * (self.max_stacks - 1) + 1 if self.n_time_steps is None else self.n_time_steps

    @cached_property
    def table(self) -> tuple[int, ...]:
        """The time step of each stack."""
        steps = [self._mapped(index) for index in range(self.max_stacks)]
        return tuple(steps if self.noise_direction == "increasing" else reversed(steps))

    def time_step(self, stack_index: int) -> int:
        """The time step of the stack that was created after so many others."""
        if not 0 <= stack_index < self.max_stacks:
            raise ValueError(f"stack_index must be at least 0 and below max_stacks = {self.max_stacks}; got {stack_index}")
        return self.table[stack_index]

    def time(self, stack_index: int) -> float:
        """The same as a time in [0, 1]."""
        return float(as_times(np.array(self.time_step(stack_index)), self.n_steps))

    def _mapped(self, index: int) -> int:
        last = self.n_steps - 1
        if self.mapping != "custom":
            sizes = {"max_stacks": self.max_stacks, "time_per_stack": self.time_per_stack, "n_time_steps": self.n_steps}
            return depth_step(self.mapping, index, **sizes)
        assert self.custom is not None  # checked before
        function = find_function(self.custom) if isinstance(self.custom, str) else self.custom
        step = function(index, self.max_stacks, self.n_steps)
        if not isinstance(step, int | float | np.number) or not np.isfinite(step):
            raise ValueError(f"the custom mapping must return a number; got {step!r} for stack {index}")
        return min(max(round(float(step)), 0), last)


def find_function(place: str) -> CustomMapping:
    """The function at `package.module:function`; a ValueError where there is none."""
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise ValueError(f"a function's place is written package.module:function; got {place!r}")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"no function at {place!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"no function at {place!r}: the module {module} has no function {name}")  # noqa: TRY004 - a user's text
    found: CustomMapping = function
    return found


def as_times(time_steps: np.ndarray, n_time_steps: int) -> np.ndarray:
    """Time steps 0 to n - 1 as times from 0 to 1."""
    return np.asarray(time_steps, dtype=float) / max(n_time_steps - 1, 1)


def time_steps_of_samples(n_time_steps: int, sample_ids: np.ndarray, draw: Draw) -> np.ndarray:
    """floor(u n) for each sample [n] by itself, u from U[0, 1): the same in every batch, as a cache of activations needs it."""
    return np.floor(uniform(sample_ids, 1, "time", *draw.key)[:, 0] * n_time_steps).astype(np.int64)


def time_steps_of_batch(n_time_steps: int, n_samples: int, draw: Draw, step: int) -> np.ndarray:
    """floor(u n) once for the batch of a training step: [n_samples], all the same."""
    u = stream("batch time", *draw.key, step).random()
    return np.full(n_samples, math.floor(u * n_time_steps), dtype=np.int64)
