"""A Tune callback: collects the scores of shards, and counts their failures."""

import json
import queue
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.tune import Callback
from tensorboardX import SummaryWriter

from launch.tune.sessions import last_error_of
from models import placement_text
from search.evaluation.score_batches import Values
from search.runs.workers import WorkersError


class ShardResults(Callback):
    """Passes on what Tune hears from its trials, and shows the search in TensorBoard: curves and candidates over all shards.

    Tune starts a trial that failed again, as often as it takes; its shard goes back to the queue. What ends the search is a shard
    that failed more than `max_failures` times, or workers that fail so often without one that they cannot be right.
    """

    def __init__(self, shard_queue: Any, folder: Path, *, n_workers: int, max_failures: int) -> None:
        self.arrived: queue.SimpleQueue[tuple[int, Values] | WorkersError] = queue.SimpleQueue()
        self._shard_queue, self._folder, self._max_failures = shard_queue, folder, max_failures
        self._n_vain, self._most_in_vain = 0, n_workers * (max_failures + 1)
        self._writer: SummaryWriter | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for `Tuner.restore`; a search that goes on replays its score log instead."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A shard's numbers; those of the batches are taken out, or Tune would keep them of all rounds."""
        del iteration, trials, trial, info
        if "values" in result:
            values = {task: np.array(rows) for task, rows in json.loads(result.pop("values")).items()}
            self._n_vain = 0
            self.arrived.put((result["shard"], values))
            self._draw(result, values)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A shard that raised, or a worker that died; Tune starts the trial again."""
        del iteration, trials, info
        self._failed(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that Tune cannot start again; another takes its place."""
        del iteration, trials, info
        self._failed(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Close the file."""
        del trials, info
        if self._writer is not None:
            self._writer.close()

    def _failed(self, trial: Any) -> None:
        shard, n_failures = ray.get(self._shard_queue.failed.remote(trial.trial_id))
        last = last_error_of(trial)
        if shard is None:
            self._n_vain += 1
            if self._n_vain >= self._most_in_vain:
                self.arrived.put(WorkersError(f"evaluation workers do not start, or do not stay:\n{last}"))
        elif n_failures > self._max_failures:
            texts = "; ".join(placement_text(placement) for placement in shard.placements)
            self.arrived.put(WorkersError(f"placements that could not be scored, after {n_failures} tries: {texts}\n{last}"))

    def _draw(self, result: dict[str, Any], values: Values) -> None:
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        for task, array in values.items():
            self._writer.add_scalar(f"best_of_shard/{task}", array.mean(1).max(), result["shard"])
        told = [f"- {row['placement']}: {row['scores']}" for row in result["candidates"]]
        self._writer.add_text("candidates", "\n".join(told), result["shard"])
        for name in ("round", "seconds", "n_placements"):
            self._writer.add_scalar(f"shard/{name}", result[name], result["shard"])
