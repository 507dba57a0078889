"""What a configuration says of workers: how many, and what Ray reserves for each; the error of those that fail for good."""

from __future__ import annotations

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from configs import Spec


class WorkersError(RuntimeError):
    """Training on several workers has failed for good; the text is ready to be printed."""


class WorkersSpec(Spec):
    """The workers on Ray that train together; a run in this process has none. `gpus` null: one, where the cluster has any."""

    n: PositiveInt = 1
    cpus: PositiveFloat = 1
    gpus: NonNegativeFloat | None = None
    max_failures: NonNegativeInt = 2


class ScorerSpec(Spec):
    """What an evaluation worker on Ray gets; null GPUs: one, where the cluster has any and the supernet's device is not cpu."""

    n: PositiveInt = 2
    cpus: PositiveFloat = 1
    gpus: NonNegativeFloat | None = None
    max_failures: NonNegativeInt = 2


class WorkerSpec(Spec):
    """What a Ray worker gets, and how often a trial that died is tried again; a run in this process has no workers.

    `gpus` may be a fraction; null is one GPU where the cluster has any (and `train.device` is not cpu), else none.
    """

    cpus: PositiveFloat = 1
    gpus: NonNegativeFloat | None = None
    max_concurrent: PositiveInt | None = None
    max_failures: NonNegativeInt = 1
