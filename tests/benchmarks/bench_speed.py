"""What we take beside what people would pick instead, one thread; `python -m tests.benchmarks.bench_speed`.

Each row is a ratio of two things that are measured in turn in one run, in CPU seconds (on a GPU, seconds of the clock): the
median over the rounds, and the range. `wanted` is the ratio at most.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch

from search.training.devices import hardware, resolve_device, use_one_thread
from tests.benchmarks import speed_scoring, speed_training


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, with the device idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    work()
    return time.process_time() - started


def row(name: str, make: Callable[[], speed_training.Pair], wanted: float | None, n_rounds: int) -> str:
    """Measure a pair in turn."""
    device, pair = resolve_device("auto"), make()
    for work in pair:
        work()
    taken = [[seconds_of(work, device) for work in pair] for _ in range(n_rounds)]
    ratios = sorted(ours / peer for ours, peer in taken)
    ours, peer = (1000 * statistics.median(column) for column in zip(*taken, strict=True))
    aim = "      " if wanted is None else f"{wanted:6.2f}"
    span = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"{name:66} {statistics.median(ratios):6.2f} {span:16} {aim} {ours:9.1f} {peer:9.1f}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=["*"], help="globs of the rows' names")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    use_one_thread()
    print(f"{hardware()}, torch {torch.__version__}, one thread; medians of {arguments.rounds} rounds")
    print(f"{'ours / peer':66} {'median':>6} {'(range)':16} {'wanted':>6} {'ours, ms':>9} {'peer, ms':>9}")
    for name, (make, wanted) in {**speed_scoring.pairs(), **speed_training.pairs()}.items():
        if any(fnmatchcase(name, glob) for glob in arguments.rows):
            print(row(name, make, wanted, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
