"""Scores placements on Ray workers that hold the supernet for the whole search; one Tune trial is one shard of a round."""

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import ray
from ray import tune

from launch.cluster import cluster, worker_resources
from launch.scoring.shard_queue import ScoringShard, ShardQueue
from launch.scoring.shard_results import ShardResults
from launch.scoring.split_rounds import split
from launch.scoring.worker import EvaluationWorker
from launch.tune.schedulers import PatientScheduler
from launch.tune.searchers import StandbySearch, UntilOver
from launch.tune.sessions import next_session
from models import Placement
from search.evaluation.evaluator import Scorer
from search.evaluation.score_batches import Values
from search.runs.workers import ScorerSpec, WorkersError
from search.training.spec import Device

SECONDS_TO_END, SECONDS_TO_GIVE_UP = 30.0, 5.0
"""How long the end of a search waits for Tune to wind up, and its interruption for shards under way."""


class TuneScorer:
    """Scores placements on Ray, for the time of a `with` block: `scorer(placements, batches) -> numbers by task`.

    One Tuner lives in a thread for the whole search. Its trials follow one another on `workers.n` processes; each waits at the
    queue for its shard and ends with it, and the process goes to the next trial. So a round costs no start-up, and a trial that
    raises or whose worker dies is Tune's to try again.
    """

    def __init__(self, make_scorer: Callable[[], Scorer], out: Path, workers: ScorerSpec, device: Device) -> None:
        """Say what scores and who.

        Args:
            make_scorer: called once in each worker process; travels through the object store, arrays in it without a copy.
            out: the folder of the search; Tune's own files go to `tune/` in it.
            workers: the processes.
            device: what they compute on.
        """
        self._make_scorer, self._out, self._workers, self._device = make_scorer, out, workers, device
        self._stack = ExitStack()
        self._n_shards = self._n_rounds = 0

    def __enter__(self) -> Self:
        """Start the workers.

        Raises:
            ConfigError: if a worker asks for more than the cluster has.
        """
        with ExitStack() as stack:
            resources = worker_resources(self._workers, self._device, stack.enter_context(cluster()))
            name = f"mixrack-shards-{uuid.uuid4().hex}"
            supplies = ray.put(self._make_scorer)
            shard_queue: Any = ray.remote(num_cpus=0)(ShardQueue).options(name=name).remote([supplies])
            self._shard_queue = shard_queue
            stack.callback(ray.kill, shard_queue)
            self._session = next_session(self._out / "tune")
            self._results = ShardResults(
                shard_queue,
                self._out / "tune" / self._session,
                n_workers=self._workers.n,
                max_failures=self._workers.max_failures,
            )
            self._search = StandbySearch({"shard_queue": name, "n_threads": self._workers.n_threads})
            self._tune: Future[Any] = _in_daemon_thread(self._tuner(resources).fit)
            self._tune.add_done_callback(self._tune_has_ended)
            stack.push(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wind Tune down; what has not ended then ends with the connection to Ray."""
        self._stack.__exit__(kind, error, trace)

    def __call__(self, placements: Sequence[Placement], batches: range) -> Values:
        """Score placements on a range of the batches: task -> [placement, batch], in the order asked.

        Raises:
            WorkersError: if a shard failed more often than `workers.max_failures` times.
        """
        self._n_rounds += 1
        shards = {}
        for part in split(list(dict.fromkeys(placements)), self._workers.n):
            self._n_shards += 1
            shards[self._n_shards] = ScoringShard(self._n_shards, self._n_rounds, part, batches)
        ray.get(self._shard_queue.add.remote(list(shards.values())))
        rows: dict[Placement, dict[str, np.ndarray]] = {}
        while len(rows) < sum(len(shard.placements) for shard in shards.values()):
            arrived = self._results.arrived.get()
            if isinstance(arrived, WorkersError):
                raise arrived
            number, values = arrived
            if number not in shards:
                continue  # of an earlier round, scored twice: its trial failed after its numbers had arrived
            self._shard_queue.done.remote(number)
            for index, placement in enumerate(shards[number].placements):
                rows[placement] = {task: array[index] for task, array in values.items()}
        tasks = next(iter(rows.values()))
        return {task: np.stack([rows[placement][task] for placement in placements]) for task in tasks}

    def _tuner(self, resources: dict[str, float]) -> tune.Tuner:
        return tune.Tuner(
            tune.with_resources(EvaluationWorker, resources),
            tune_config=tune.TuneConfig(
                search_alg=self._search,
                scheduler=PatientScheduler(),
                num_samples=-1,
                max_concurrent_trials=self._workers.n,
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name=self._session,
                stop=UntilOver(self._search),
                storage_path=str((self._out / "tune").resolve()),
                failure_config=tune.FailureConfig(max_failures=-1),  # `ShardResults` counts, by shard
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[self._results],
                verbose=0,
            ),
        )

    def _tune_has_ended(self, future: Future[Any]) -> None:
        """Nothing more will arrive: whoever waits is told."""
        self._results.arrived.put(WorkersError(f"Ray Tune has ended: {future.exception()}"))

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del error, trace
        self._search.is_over = True
        ray.get(self._shard_queue.close.remote())
        wait([self._tune], timeout=SECONDS_TO_END if kind is None else SECONDS_TO_GIVE_UP)


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _in_daemon_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run in a thread that the end of the process does not wait for, unlike an executor's: a shard may take minutes."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever holds the future is told
            future.set_exception(error)

    threading.Thread(target=run, name="tune", daemon=True).start()
    return future
