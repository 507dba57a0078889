"""Joins the Ray cluster there is, or starts one on this machine."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants, utils

from configs import ConfigError
from launch.upload import JOIN_LIMIT, PROJECT, check_upload
from search.runs.interruption import interruptions
from search.runs.workers import ResourcesSpec
from search.training.spec import Device

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_AIR_NEW_OUTPUT": "0",  # our own lines stand for Tune's tables
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trial log and TensorBoard instead of a CSV and a JSON file a trial
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Tune hands a worker that is done to the next trial only if that one is waiting already: keep some waiting.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}
"""What Ray and Tune read when they start; a user's own settings win."""
DRIVERS_FOLDER = "MIXRACK_DRIVERS_FOLDER"
EXCLUDED = ["/.venv", "/.git", "/runs", "/data"]
"""What of the project never travels to the workers of a cluster, whatever .rayignore says: these folders may be huge."""


@contextmanager
def cluster() -> Iterator[dict[str, float]]:
    """Connect for the time of the block; yields the cluster's resources.

    `RAY_ADDRESS` (set by `ray job submit`, or by hand) says which cluster; without it, or with `local`, one is started here
    and stopped at the end (`start_here`).

    Raises:
        ConfigError: if nothing answers at the address, or the project is too large to travel there.
        KeyboardInterrupt: if SIGINT or SIGTERM came while Ray started.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is a row with its error, told once
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        with interruptions() as is_interrupted, _ray_without_sigterm():
            if address in ("", "local"):
                start_here()
            else:
                _join(address)
        if is_interrupted():
            raise KeyboardInterrupt
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


@contextmanager
def _ray_without_sigterm() -> Iterator[None]:
    """Keep Ray from listening to SIGTERM: it would end the process without a word, or, while it starts, perhaps not at all."""
    listen = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = listen


def start_here(n_cpus: int | None = None) -> None:
    """Start Ray on this machine, without a dashboard, for this machine's own processes alone: all servers listen on loopback.

    They ask for a token, unless RAY_AUTH_MODE says otherwise. It is the user's own where there is one (RAY_AUTH_TOKEN,
    RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), else one of this process; Ray itself would write one into the user's home, and from
    then on other programs' clusters would want it.

    Args:
        n_cpus: how many CPUs Ray hands out; None is all there are.
    """
    has_token = "RAY_AUTH_TOKEN_PATH" in os.environ or (Path.home() / ".ray/auth_token").exists()
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and not has_token:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    before = ray_constants.ENABLE_RAY_CLUSTER
    # Ray takes the machine's outer address for its own, and listens on all, even when it is told `_node_ip_address="127.0.0.1"`.
    # Only where it knows no clusters of several machines, as on macOS, it stays on loopback.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _join(address: str) -> None:
    _check_address(address)
    project = None
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # inside `ray job submit` the job has brought the project along
        check_upload(PROJECT, EXCLUDED, JOIN_LIMIT)
        folder = {DRIVERS_FOLDER: str(Path.cwd())}
        project = {"working_dir": str(PROJECT), "excludes": EXCLUDED, "env_vars": folder}
    ray.init(logging_level=logging.ERROR, runtime_env=project)


def work_where_the_driver_does() -> None:
    """Have this worker's process look for relative paths in the folder where its driver does, of storage that they share.

    On a cluster that was joined, workers start in a copy of the project; everywhere else they are there already. A machine
    without the folder stays in the copy, and says of each file that it does not find which one that is.
    """
    folder = os.environ.get(DRIVERS_FOLDER)
    if folder and Path(folder).is_dir():
        os.chdir(folder)


def may_use_gpus(workers: ResourcesSpec, device: Device, resources: Mapping[str, float]) -> bool:
    """Whether workers compute on GPUs."""
    return device != "cpu" and workers.gpus != 0 and resources.get("GPU", 0) > 0


def worker_resources(workers: ResourcesSpec, device: Device, resources: Mapping[str, float]) -> dict[str, float]:
    """What Tune reserves for a worker.

    Raises:
        ConfigError: if that is more than the whole cluster has (Ray itself would wait for ever), or leaves `cuda` without a GPU.
    """
    uses_gpus = may_use_gpus(workers, device, resources)
    if device == "cuda" and not uses_gpus:
        raise ConfigError("train.device is cuda, but the workers have no GPU: give auto or cpu, or look at workers.gpus")
    gpus = float(uses_gpus) if workers.gpus is None else workers.gpus
    for name, wanted, key in (("CPU", workers.cpus, "cpus"), ("GPU", gpus, "gpus")):
        if wanted > resources.get(name, 0):
            raise ConfigError(
                f"workers.{key}: {wanted:g} a worker, but the cluster has {resources.get(name, 0):g} {name}(s) in all"
            )
    return {"cpu": workers.cpus, "gpu": gpus}


def _check_address(address: str) -> None:
    """Say at once that nothing answers at `host:port`; Ray itself goes on asking for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return  # `auto` and the like
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: nothing answers there ({error.strerror or error})") from None
