"""Which device a run uses, in which precision, on how many threads."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from search.training.spec import Device, TrainPrecision


def resolve_device(device: Device) -> torch.device:
    """`auto` is CUDA where there is one; ConfigError if `cuda` is asked for and missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA device here; give 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def computes_in(device: torch.device, precision: TrainPrecision) -> TrainPrecision:
    """What a precision is on a device: everything but `auto`, which is bf16 on CUDA and fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "fp32" if device.type == "cpu" else "bf16"


@contextmanager
def autocast(device: torch.device, precision: TrainPrecision) -> Iterator[None]:
    """Compute in a precision for a while."""
    is_half = computes_in(device, precision) == "bf16"
    with float32_products(device, precision), torch.autocast(device.type, torch.bfloat16) if is_half else nullcontext():
        yield


@contextmanager
def float32_products(device: torch.device, precision: TrainPrecision) -> Iterator[None]:
    """Have matrix products of float32 tensors be rounded in `medium` alone, whatever torch has been told before.

    It is told so again afterwards. The switch is the process's, not a thread's; backward passes heed it too.
    """
    switch: Any = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    rounded = "tf32" if device.type == "cuda" else "bf16"
    before = switch.fp32_precision
    switch.fp32_precision = rounded if precision == "medium" else "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


def moved(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":  # from pinned memory the copy does not wait for the device
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def reseed(device: torch.device, seed: int) -> None:
    """Seed what draws dropout: `torch.manual_seed` looks at every kind of device, which costs more than a small model's layer."""
    torch.default_generator.manual_seed(seed % 2**63)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index].manual_seed(
            seed % 2**63
        )


def use_one_thread() -> None:
    """One thread for this process: trials run side by side, and two processes of two threads each run 2-30x slower."""
    torch.set_num_threads(1)


def machine() -> dict[str, str | int | None]:
    """Where a run is made, and by what, for the results."""
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    return {"hardware": hardware(), "n_cpus": os.cpu_count(), **versions}


def hardware(device: torch.device | None = None) -> str:
    """The name of a device, for the results; without one, of what `auto` is here."""
    chosen = device or resolve_device("auto")
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone; elsewhere the architecture has to do
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
