"""Joins the Ray cluster there is, or starts one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_AIR_NEW_OUTPUT": "0",  # our own lines stand for Tune's tables
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trial log and TensorBoard instead of a CSV and a JSON file a trial
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Tune hands a worker that is done to the next trial only if that one is waiting already: keep some waiting.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}
"""What Ray and Tune read when they start; a user's own settings win."""


@contextmanager
def cluster() -> Iterator[dict[str, float]]:
    """Connect for the time of the block; yields the cluster's resources.

    `RAY_ADDRESS` (set by `ray job submit`, or by hand) says which cluster; without it one is started here, on loopback and
    without a dashboard, and stopped at the end.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is a row with its error, told once
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.ERROR)
    else:
        ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
