"""Decides whether and how to cache activations: by size, number of reads, and the cost of a forward pass."""

import math
from dataclasses import dataclass
from typing import Literal

from configs import ConfigError
from search.activations.key import CacheKey

KeptMode = Literal["memory", "arrow", "stream"]


@dataclass(frozen=True)
class Limits:
    """Bytes that a cache may take up; None is no limit."""

    memory_bytes: int | None = None
    disk_bytes: int | None = None

    def of(self, mode: KeptMode) -> int | None:
        """The limit that counts in a mode."""
        return {"memory": self.memory_bytes, "arrow": self.disk_bytes, "stream": None}[mode]

    def refuse(self, key: CacheKey, n_rows: int, mode: KeptMode) -> None:
        """Raise a ConfigError with the numbers if so many rows are too large."""
        limit = self.of(mode)
        if mode != "stream" and limit is not None and n_rows * key.row_bytes > limit:
            size = f"{key.size_text(n_rows)}, over the limit of {limit} bytes"
            raise ConfigError(f"cache: mode {mode} would take {size}; raise the limit, take fewer variants, or mode stream")


@dataclass(frozen=True)
class Rates:
    """Measured on the machine: what the trunk reaches, and how fast hidden states are read at random."""

    flops_per_second: float
    memory_bytes_per_second: float
    disk_bytes_per_second: float


@dataclass(frozen=True)
class Reuse:
    """What `auto` decides by: how often every row is asked for, and what it costs to compute."""

    epochs: float
    trunk_parameters: int
    rates: Rates


@dataclass(frozen=True)
class Decision:
    """A mode, and the reason in words."""

    mode: KeptMode
    reason: str


def break_even_parameters(key: CacheKey, *, flops_per_second: float, bytes_per_second: float) -> float:
    """The size of a trunk from which on a read is faster than a forward pass of 2 operations a parameter and token."""
    return key.d_model * key.torch_dtype.itemsize * flops_per_second / (2 * bytes_per_second)


def choose_cache_mode(key: CacheKey, n_rows: int, reuse: Reuse, *, limits: Limits, has_folder: bool) -> Decision:
    """Memory where it fits and pays, else files where they fit and pay, else the trunk at every step.

    In memory, rows are kept as they are first computed: E epochs save E - 1 forward passes for E - 1 reads. Files are written
    in a pass of their own, and a write counts like a read: E + 1 transfers for the E - 1 passes saved.
    """
    epochs, rates = reuse.epochs, reuse.rates
    if epochs <= 1:
        return Decision("stream", f"{epochs:g} epoch(s): no hidden state is asked for twice")
    transfers = (epochs + 1) / (epochs - 1)
    modes: list[tuple[KeptMode, float, float]] = [("memory", rates.memory_bytes_per_second, 1.0)]
    if has_folder:
        modes.append(("arrow", rates.disk_bytes_per_second, transfers))
    against, n_bytes = [], n_rows * key.row_bytes
    for mode, bytes_per_second, factor in modes:
        needed = factor * break_even_parameters(key, flops_per_second=rates.flops_per_second, bytes_per_second=bytes_per_second)
        limit = math.inf if (given := limits.of(mode)) is None else given
        if n_bytes > limit:
            against.append(f"mode {mode} would take {key.size_text(n_rows)} of {limit}")
        elif reuse.trunk_parameters <= needed:
            against.append(f"mode {mode} pays from {needed:.3g} parameters on, the trunk has {reuse.trunk_parameters}")
        else:
            return Decision(
                mode, f"{n_bytes} bytes fit, and the trunk's {reuse.trunk_parameters} parameters are over {needed:.3g}"
            )
    return Decision("stream", "; ".join(against))
