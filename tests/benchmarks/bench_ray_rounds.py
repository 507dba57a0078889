"""What Ray and Tune add to each round of a placement search; `python -m tests.benchmarks.bench_ray_rounds`.

Beam searches over a random supernet of 12 layers and 3 mixers run on 2 evaluation workers. What is added to a round is its wall
time without that of its slowest shard, as the worker timed it; rounds before both have started are apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from launch.cluster import cluster
from launch.scoring.supernet_scorer import supernet_scorer
from models import Placement, RackSpec, Supernet
from search.evaluation.evaluator import Evaluator, Scorer
from search.evaluation.score_batches import Values, score_batches
from search.runs.console import duration
from search.runs.workers import ScorerSpec
from search.strategies import STRATEGIES
from search.training.devices import hardware, use_one_thread

MIXERS = {
    "attention": {"kind": "attention", "n_heads": 4},
    "delta": {"kind": "gated_delta_net", "n_heads": 4},
    "linear": {"kind": "linear_attention", "n_heads": 4},
}
BUDGETS = (2, 3, 4, 5)
BLOCK = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": MIXERS}, "mlp": {"kind": "swiglu"}}


def timed(scorer: Scorer, walls: list[float], placements: Sequence[Placement], batches: range) -> Values:
    """Score a round and note how long that took."""
    started = time.perf_counter()
    values = scorer(placements, batches)
    walls.append(time.perf_counter() - started)
    return values


def search(space: RackSpec, scorer: Scorer, n_batches: int, width: int) -> tuple[float, list[float]]:
    """The sum of the best scores of beam searches under some budgets, and the wall time of each round."""
    walls: list[float] = []
    evaluate = Evaluator(partial(timed, scorer, walls), n_batches=n_batches, shares={"task": 1.0}, key="")
    best = []
    for n in BUDGETS:
        rounds = STRATEGIES["beam"](width=width).search(space, {"attention": n, "delta": 3}, evaluate)
        best.append(max(candidate.score for found in rounds for candidate in found if candidate.is_admitted))
    return sum(best), walls


def slowest_shards(out: Path, n_workers: int) -> tuple[list[float], int]:
    """Seconds of the slowest shard of each round, and after how many rounds all workers had started; from Tune's own records."""
    (state,) = out.glob("tune/session-1/experiment_state-*.json")
    results = [json.loads(trial[1])["last_result"] for trial in json.loads(state.read_text())["trial_data"]]
    seconds: dict[int, float] = {}
    firsts: dict[int, int] = {}
    for result in results:
        if "shard" in result:
            number, worker = result["round"], result["worker"]
            seconds[number] = max(seconds.get(number, 0.0), result["seconds"])
            firsts[worker] = min(firsts.get(worker, number), number)
    assert len(firsts) == n_workers, "a worker was replaced, or never started"
    return [seconds[number] for number in sorted(seconds)], max(firsts.values())


def main() -> None:
    """Run the search in one process and on Ray, and print what was added."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-model", type=int, default=32)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    use_one_thread()
    space = RackSpec(vocab_size=64, d_model=given.d_model, stacks=[{"n_blocks": 12, "block": BLOCK}])
    supernet = Supernet(space).eval()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(64, (given.batches, 2, 8, 64), generator=generator)
    batches = {"task": [(inputs, targets) for inputs, targets in drawn]}

    def here(placements: Sequence[Placement], numbers: range) -> Values:
        return score_batches(supernet, placements, {"task": batches["task"][numbers.start : numbers.stop]})

    best, walls = search(space, here, given.batches, given.width)
    print(f"{hardware()}, d_model {given.d_model}, {len(walls)} rounds, {given.workers} workers")
    print(f"in one process: {duration(sum(walls))}, median round {statistics.median(walls):.3f} s, scores {best:.6f}")
    workers = ScorerSpec(n=given.workers, cpus=1, gpus=0, max_failures=0)
    with tempfile.TemporaryDirectory() as folder, cluster():
        with supernet_scorer(supernet, batches, "loss", Path(folder), workers) as scorer:
            best, walls = search(space, scorer, given.batches, given.width)
        slowest, n_first = slowest_shards(Path(folder), given.workers)
    added = [wall - shard for wall, shard in zip(walls, slowest, strict=True)]
    later = added[n_first:]
    print(f"on Ray: {duration(sum(walls))}, median round {statistics.median(walls):.3f} s, scores {best:.6f}")
    print(f"start-up: {sum(added[:n_first]):.2f} s, in the first {n_first} rounds")
    print(f"added to each of {len(later)} later rounds: median {statistics.median(later):.3f} s, most {max(later):.3f} s")


if __name__ == "__main__":
    main()
