"""What a configuration says of workers: how many, and what Ray reserves for each; the error of those that fail for good."""

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from configs import Spec
from search.runs.errors import RunError


class WorkersError(RunError):
    """Training on several workers has failed for good; the text is ready to be printed."""


class ResourcesSpec(Spec):
    """What Ray reserves for a worker, which computes on as many threads; a run in this process has none, and one thread.

    `gpus` may be a fraction; null is one GPU where the cluster has any (and the device is not cpu), else none.
    """

    cpus: PositiveFloat = 1
    gpus: NonNegativeFloat | None = None

    @property
    def n_threads(self) -> int:
        """That torch has in a worker: one for each whole CPU."""
        return max(1, int(self.cpus))


class WorkersSpec(ResourcesSpec):
    """The workers that train together, and how often they are tried again when one died."""

    n: PositiveInt = 1
    max_failures: NonNegativeInt = 2


class ScorerSpec(WorkersSpec):
    """The workers that score candidates side by side, and how often a shard of them is tried again."""

    n: PositiveInt = 2


class TrialWorkerSpec(ResourcesSpec):
    """The worker of each trial of a sweep, how many there are at once, and how often a trial that died is tried again."""

    max_concurrent: PositiveInt | None = None
    max_failures: NonNegativeInt = 1
