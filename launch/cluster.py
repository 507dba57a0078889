"""Joins the Ray cluster there is, or starts one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from configs import ConfigError

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
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
        # Inside `ray job submit` the job has brought the project along; by hand, this does.
        inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        project = {"working_dir": str(Path(__file__).parents[1]), "excludes": [".venv", ".git", "runs"]}
        ray.init(logging_level=logging.ERROR, runtime_env=None if inside_job else project)
    else:
        ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Say at once that nothing answers at `host:port`; Ray itself goes on asking for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return  # `auto` and the like
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: nothing answers there ({error.strerror or error})") from None
