"""Trains a supernet or grows a rack on Ray Train: workers that are one, replaced if they die, with the numbers of one process."""

import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from configs import ConfigError
from launch.cluster import cluster, worker_resources
from launch.train.log import LOG, Failures, Tail, told
from launch.train.process_group import torch_config
from launch.train.worker import POLL_SECONDS, REFUSED, STARTED, STOP, train_worker
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stages import is_finished, next_index, pending_choice
from search.jobs.supernet.job import train_supernet
from search.jobs.supernet.spec import SupernetSpec
from search.runs.interruption import interruptions
from search.runs.report import Say
from search.runs.run_folder import RESULTS, Row, write_text
from search.runs.workers import WorkersError

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # how often Train looks; a report waits that long, and so does the end of a run
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a checkpoint is never far
}
ERRORS, TRAIN = "errors.txt", ".train"


def train_on_ray(spec: SupernetSpec, out: Path, say: Say | None = None) -> Row:
    """Train on `spec.workers` what the folder does not hold yet; returns the summary that `results.json` holds.

    All workers write and read the folder under the same path: on several machines it has to lie on storage that they share. A
    worker that dies takes the group with it; Train starts it anew, at most `workers.max_failures` times, and it goes on from the
    newest checkpoint, as does the same call after the driver has died. `say` takes lines for people; None prints them.

    Raises:
        ConfigError: if the cluster is too small, the folder belongs to another run, or files, teacher or start do not fit.
        WorkersError: if the workers have failed for good.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint of the last finished step; after a second one at once.
    """
    return train_supernet(spec, out, train=partial(_train, is_done=(out / RESULTS).exists), say=say)


def grow_on_ray(spec: ProgressiveSpec, out: Path, say: Say) -> None:
    """Run on `spec.workers` the stages of a growth that the folder does not hold yet, up to the end or to the next choice.

    What is said of `train_on_ray` holds here too.
    """

    def is_done() -> bool:
        return is_finished(out) or pending_choice(spec, out, next_index(out)) is not None

    _train(spec, out, say, is_done=is_done)


def _train(spec: SupernetSpec | ProgressiveSpec, out: Path, say: Say, *, is_done: Callable[[], bool]) -> None:
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    out = out.resolve()
    for name in (STARTED, STOP, REFUSED, LOG, ERRORS):
        (out / name).unlink(missing_ok=True)
    _forget(out / TRAIN)  # of a driver that was killed: Train would take its state and its count of failures for this run's
    try:
        with cluster() as resources:
            was_interrupted = _fit(_trainer(spec, out, _worker(spec, resources)), out, say)
    finally:
        for name in (STARTED, STOP):
            (out / name).unlink(missing_ok=True)
        _forget(out / TRAIN)
    if (out / REFUSED).exists():
        refusal = (out / REFUSED).read_text(encoding="utf-8")
        for name in (REFUSED, LOG):
            (out / name).unlink(missing_ok=True)
        raise ConfigError(refusal)
    if not is_done() or (was_interrupted and not (out / RESULTS).exists()):
        raise KeyboardInterrupt


def _forget(folder: Path) -> None:
    """Remove what Train keeps, but nothing behind a link: what a run goes on from stands in its own checkpoints."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _worker(spec: SupernetSpec | ProgressiveSpec, resources: dict[str, float]) -> dict[str, float]:
    worker, n = worker_resources(spec.workers, spec.train.device, resources), spec.workers.n
    for name, each in worker.items():
        there = resources.get(name.upper(), 0)
        if n * each > there:
            raise ConfigError(f"workers.n: {n} workers of {each:g} {name.upper()}(s) each, but the cluster has {there:g} in all")
    return worker


def _trainer(spec: SupernetSpec | ProgressiveSpec, out: Path, worker: dict[str, float]) -> TorchTrainer:
    return TorchTrainer(
        train_worker,
        train_loop_config={"spec": spec.to_dict(), "out": str(out)},
        torch_config=torch_config(),
        scaling_config=ScalingConfig(
            num_workers=spec.workers.n,
            use_gpu=worker["gpu"] > 0,
            resources_per_worker={name.upper(): amount for name, amount in worker.items()},
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(out / TRAIN),
            failure_config=FailureConfig(max_failures=spec.workers.max_failures),
            callbacks=[Failures(out)],  # type: ignore[list-item]  # the types know Tune's kind alone
        ),
    )


class _Fit(threading.Thread):
    """`fit` in a thread of its own: in the main one it would take SIGINT for itself, and nobody could repeat the log."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        """Wait for the workers."""
        try:
            self.trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for this one
            self.error = error


def _fit(trainer: TorchTrainer, out: Path, say: Say) -> bool:
    """Wait for the workers, repeating what they say; whether they were asked to stop."""
    fit, log = _Fit(trainer), Tail(out)
    with interruptions() as is_interrupted:
        fit.start()
        while is_running := fit.is_alive():
            fit.join(POLL_SECONDS)
            for line in log.lines():
                say(line)
            if is_running and is_interrupted() and not (out / STOP).exists():
                if not (out / STARTED).exists():
                    raise KeyboardInterrupt
                say("stopping after the step under way; once more to stop at once")
                (out / STOP).touch()
    if fit.error is None or (out / REFUSED).exists():
        return is_interrupted()
    failures = getattr(fit.error, "worker_failures", None)
    if failures is None:
        raise fit.error
    write_text(out / ERRORS, str(fit.error) + "\n")
    raise WorkersError(f"{out}: training failed: {told(failures)}; more in {ERRORS}") from None
