"""Measures how fast a trunk computes hidden states, and how fast they are read back."""

import time
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from search.activations.choice import Rates
from search.activations.key import CacheKey
from search.activations.trunk import Trunk

MEASURED_BYTES = 2**24


def measured_rates(trunk: Trunk, key: CacheKey, rows: Tensor, *, n_parameters: int, folder: Path) -> Rates:
    """What the trunk reaches on packed rows, and how fast bytes come back from memory and from a file in a folder."""
    started = time.perf_counter()
    trunk(rows, shape=key.shape, dtype=key.torch_dtype)
    if rows.is_cuda:
        torch.cuda.synchronize(rows.device)
    flops = 2 * n_parameters * key.time * len(rows) / (time.perf_counter() - started)
    content = np.random.default_rng(0).integers(256, size=MEASURED_BYTES, dtype=np.uint8)
    started = time.perf_counter()
    content.copy()
    memory = MEASURED_BYTES / (time.perf_counter() - started)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        file.write(content.data)
        file.seek(0)
        started = time.perf_counter()
        file.read()
        disk = MEASURED_BYTES / (time.perf_counter() - started)
    return Rates(flops, memory, disk)
