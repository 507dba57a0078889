"""Times a call: median of several, after warm-up, with the device synchronised."""

import statistics
import time
from collections.abc import Callable

import torch

N_WARM_UP = 3
"""Calls that are not timed: the first compile, choose kernels and fetch memory."""


def median_milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Wall-clock milliseconds; on a GPU from an idle device to an idle device, launches included."""
    for _ in range(N_WARM_UP):
        work()
    seconds = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
