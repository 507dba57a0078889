"""CPU-seconds per 12,800 instances: the samplers beside the one-by-one oracle. `python -m tests.benchmarks.bench_tasks`.

The oracle is several times as fast as the published generators, so the ratio to those is higher still.
"""

import sys
import time

import numpy as np

from tasks import TASKS, Task
from tests.tasks.synthetic.grid import CHANGES
from tests.tasks.synthetic.oracle import generate

N_EXAMPLES = 12_800
N_ORACLE = 200
N_ORACLE_TUPLES = 100_000
"""The oracle enumerates all keys and values of fuzzy recall; above this many it is not run."""


def sampler_seconds(task: Task) -> float:
    """The better of two runs, each half of it training instances and half of it test instances."""
    seconds = []
    for seed in range(2):
        start = time.process_time()
        for split in ("train", "test"):
            task.sample(np.random.default_rng(seed), N_EXAMPLES // 2, split)
        seconds.append(time.process_time() - start)
    return min(seconds)


def oracle_seconds(task: Task) -> float:
    generate(task, 1)
    start = time.process_time()
    generate(task, N_ORACLE // 2)
    return (time.process_time() - start) * N_EXAMPLES / N_ORACLE


def is_enumerable(task: Task) -> bool:
    return (task.vocab_size / 2) ** getattr(task, "k_motif_size", 1) < N_ORACLE_TUPLES


def main() -> None:
    write = sys.stdout.write
    write(f"{'task':<26}{'change':<24}{'sampler':>10}{'oracle':>10}{'ratio':>8}\n")
    for kind, changes in CHANGES.items():
        for change in changes:
            if "n_train" in change:
                continue
            task = TASKS[kind](**change)
            ours = sampler_seconds(task)
            theirs = oracle_seconds(task) if is_enumerable(task) else float("nan")
            name = ", ".join(f"{option}={value}" for option, value in change.items()) or "baseline"
            write(f"{kind:<26}{name:<24}{ours:>10.4f}{theirs:>10.2f}{theirs / ours:>8.0f}\n")


if __name__ == "__main__":
    main()
