"""The function that each worker of Ray Train runs: one rank of a training run."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from tensorboardX import SummaryWriter
from torch import nn

from configs import ConfigError
from configs.storage import write_text
from launch.cluster import work_where_the_driver_does
from launch.train.log import say
from search.jobs.progressive import stages
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.supernet import job as supernet
from search.jobs.supernet.spec import SupernetSpec
from search.runs.workers import WorkersSpec
from search.training.loop import OnEvaluation
from search.training.ranks import Ranks
from search.training.sharding import shard
from search.training.state import TrainState

STARTED, STOP, REFUSED = ".started", ".stop", ".refused"
"""Files of the run's folder: that the ranks train, that the driver wants them to stop, and what ConfigError one has met."""
POLL_SECONDS = 0.2


def train_worker(config: dict[str, Any]) -> None:
    """Train as one of the ranks; the main one writes history, log, curves and checkpoints into the folder that all share."""
    torch.set_num_threads(WorkersSpec.model_validate(config["spec"]["workers"]).n_threads)
    work_where_the_driver_does()
    out = Path(config["out"])
    if not (out / REFUSED).exists():  # else this group stands for one that was ended because of it
        _work(config["spec"], out, Ranks())


def _work(spec: dict[str, Any], out: Path, ranks: Ranks) -> None:
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        ranks.check_same("ready")
        is_ready = True
        if ranks.is_main:
            (out / STARTED).touch()
            say(out, f"training on {ranks.n_ranks} worker(s)")

    curves = _Curves(out / "tensorboard")

    def evaluated(member: TrainState, row: dict[str, float]) -> None:
        del member
        if ranks.is_main:
            curves.add(row)
        ray.train.report(row)

    if ranks.is_main:
        threading.Thread(target=_watch, args=(out / STOP, ranks), daemon=True).start()
    try:
        train = _grow if spec["job"] == "progressive" else _train_supernet
        train(spec, out, ranks, ready, evaluated)
    except ConfigError as error:  # trying again would not help, so this is no failure for Train
        if not is_ready:
            ranks.check_same(str(error))  # else the others would wait for this one
        write_text(out / REFUSED, str(error))
        if is_ready and ranks.n_ranks > 1:
            raise  # it may be this rank's alone, and the others wait for it: only Train can end them
    except KeyboardInterrupt:
        return  # stopped as the driver asked, with a checkpoint
    finally:
        curves.close()


def _train_supernet(spec: dict[str, Any], out: Path, ranks: Ranks, ready: Callable[[], None], evaluated: OnEvaluation) -> None:
    checked = SupernetSpec.model_validate(spec)

    def prepare(model: nn.Module) -> None:
        ready()
        if checked.parallel == "fsdp" and ranks.n_ranks > 1:
            shard(model)

    supernet.train_supernet_here(checked, out, partial(say, out), ranks=ranks, prepare=prepare, on_evaluation=evaluated)


def _grow(spec: dict[str, Any], out: Path, ranks: Ranks, ready: Callable[[], None], evaluated: OnEvaluation) -> None:
    checked = ProgressiveSpec.model_validate(spec)
    stages.run_stages(checked, out, partial(say, out), ranks=ranks, prepare=ready, on_evaluation=evaluated)


def _watch(stop: Path, ranks: Ranks) -> None:
    asked = threading.Event()
    while not stop.exists():
        asked.wait(POLL_SECONDS)
    ranks.stop()


class _Curves:
    """TensorBoard's curves of the rows; those that an earlier process drew beyond its last checkpoint are hidden."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def add(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name.replace(".", "/"), value, step)

    def close(self) -> None:
        """Wait for what is still to be written: a thread of the writer's does that, and its `flush` does not wait for it."""
        if self.writer is not None:
            self.writer.close()
