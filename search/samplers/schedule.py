"""A sampler that changes during training: from one sampler to another at given steps."""

from collections.abc import Sequence

from pydantic import NonNegativeInt

from configs import ConfigError
from models import RackSpec
from models.spec.placement import Placement, Slot
from search.samplers import SAMPLERS, Nested
from search.samplers.shared.sampler import Sampler, generator


class Schedule(Sampler):
    """`first` up to the step `start`, `then` from the step `end` on, in between `then` with a probability that grows linearly.

    If `start` is `end`, it is a switch. All placements of a step come from the same sampler.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        space: RackSpec,
        *,
        first: Nested,
        then: Nested,
        start: NonNegativeInt = 0,
        end: NonNegativeInt,
    ) -> None:
        super().__init__(slots)
        if start > end:
            raise ConfigError(f"start = {start} lies after end = {end}")
        for name, part in (("first", first), ("then", then)):
            if part is None:
                raise ConfigError(f"{name}: required, a sampler")
        self._first, self._then = (SAMPLERS.build(part, slots=slots, space=space) for part in (first, then))
        if self._first.n_per_step != self._then.n_per_step:
            n_first, n_then = self._first.n_per_step, self._then.n_per_step
            raise ConfigError(f"first draws {n_first} placement(s) a step and then {n_then}: they must draw as many")
        self.n_per_step = self._first.n_per_step
        self._start, self._end = start, end

    def draw(self, seed: int, step: int, index: int = 0) -> Placement:
        """One that the sampler of this step draws."""
        # The ends are part of the key: schedules inside of each other decide independently.
        number = generator("schedule", seed, step, self._start, self._end).random()
        share = float(step >= self._end) if self._start == self._end else (step - self._start) / (self._end - self._start)
        return (self._then if number < share else self._first).draw(seed, step, index)
