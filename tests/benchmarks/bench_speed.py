"""What we take beside what people would pick instead, one thread; `python -m tests.benchmarks.bench_speed`.

Each row is a ratio of two things that are measured in turn in one run, in CPU seconds (on a GPU, seconds of the clock): the
median over the rounds, and the range. `wanted` is the ratio at most.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from search.training.devices import hardware, resolve_device, use_one_thread
from tests.benchmarks import speed_ops, speed_scoring, speed_training

LEAST_SECONDS = 0.02
"""That a timing takes: shorter calls are repeated."""


def seconds_of(work: Callable[[], object], n_calls: int, device: torch.device) -> float:
    """Of a call, with the device idle before and after."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    for _ in range(n_calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - started) / n_calls


def row(name: str, make: Callable[[], speed_training.Pair], wanted: float | None, n_rounds: int) -> str:
    """Measure a pair in turn."""
    device, pair = resolve_device("auto"), make()
    for work in pair:
        work()
    n_calls = [max(1, round(LEAST_SECONDS / max(seconds_of(work, 1, device), 1e-6))) for work in pair]
    taken = [[seconds_of(work, n, device) for work, n in zip(pair, n_calls, strict=True)] for _ in range(n_rounds)]
    ratios = sorted(ours / peer for ours, peer in taken)
    ours, peer = (1000 * statistics.median(column) for column in zip(*taken, strict=True))
    aim = "      " if wanted is None else f"{wanted:6.2f}"
    span = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"{name:66} {statistics.median(ratios):6.2f} {span:16} {aim} {ours:9.2f} {peer:9.2f}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=["*"], help="globs of the rows' names")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    use_one_thread()
    print(f"{hardware()}, torch {torch.__version__}, one thread; medians of {arguments.rounds} rounds")
    print(f"{'ours / peer':66} {'median':>6} {'(range)':16} {'wanted':>6} {'ours, ms':>9} {'peer, ms':>9}")
    with tempfile.TemporaryDirectory() as folder:
        rows = {**speed_scoring.pairs(), **speed_ops.pairs(Path(folder)), **speed_training.pairs()}
        for name, (make, wanted) in rows.items():
            if any(fnmatchcase(name, glob) for glob in arguments.rows):
                torch.manual_seed(0)
                print(row(name, make, wanted, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
