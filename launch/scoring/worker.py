"""The Tune trainable of a placement search: holds the supernet, scores one shard a trial."""

import json
import os
import time
from typing import Any

import ray
import torch
from ray import tune

from launch.scoring.shard_queue import ScoringShard
from models import placement_text
from search.evaluation.evaluator import Scorer


class EvaluationWorker(tune.Trainable):
    """A Tune trial that waits at the queue for its shard; Tune hands the process, and the supernet in it, to the next trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build the scorer from what lies in the object store."""
        self._shard_queue: Any = ray.get_actor(config["shard_queue"])
        torch.set_num_threads(config["n_threads"])
        reference: Any
        (reference,) = ray.get(self._shard_queue.supplies.remote())
        self._scorer: Scorer = ray.get(reference)()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial starts here as it is."""
        del new_config
        return True

    def step(self) -> dict[str, Any]:
        """Wait for a shard and score it; at the end of the search there is none. The result has a row for each candidate."""
        shard: ScoringShard | None = ray.get(self._shard_queue.take.remote(self.trial_id))
        if shard is None:
            return {"done": True}
        started = time.perf_counter()
        values = self._scorer(shard.placements, shard.batches)
        return {
            "done": True,
            "shard": shard.number,
            "round": shard.round,
            "n_placements": len(shard.placements),
            "n_batches": len(shard.batches),
            "candidates": [
                {"placement": placement_text(each), "scores": {task: float(rows[n].mean()) for task, rows in values.items()}}
                for n, each in enumerate(shard.placements)
            ],
            "seconds": time.perf_counter() - started,
            "worker": os.getpid(),
            "values": json.dumps({task: array.tolist() for task, array in values.items()}),
        }
