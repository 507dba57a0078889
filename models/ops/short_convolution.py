"""A short causal convolution of each channel alone."""

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """y_t = activation(bias + sum_i weight_i x_{t - width + 1 + i}), depthwise over [batch, time, channels].

    A sum of `width` shifted products: on a CPU twice as fast as a grouped `conv1d`, and it needs no transposition.
    """

    def __init__(self, channels: int, width: int, *, bias: bool = False, silu: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, channels] -> same."""
        return self._convolve(F.pad(x, (0, 0, self.weight.shape[1] - 1, 0)))

    def initial_state(self, batch_size: int) -> Tensor:
        """The inputs before the first position: zeros [batch, width - 1, channels]."""
        channels, width = self.weight.shape
        return self.weight.new_zeros(batch_size, width - 1, channels)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One position: ([batch, channels], state) -> ([batch, channels], next state)."""
        window = torch.cat((state, x[:, None]), dim=1)
        return self._convolve(window)[:, 0], window[:, 1:]

    def flops(self, seq_len: int) -> int:
        """Forward operations for `seq_len` positions."""
        return 2 * seq_len * self.weight.numel()

    def _convolve(self, padded: Tensor) -> Tensor:
        width = self.weight.shape[1]
        time = padded.shape[1] - width + 1
        taps = self.weight.to(padded.dtype).unbind(1)
        total = self.weight.new_zeros(1) if self.bias is None else self.bias
        total = total.to(padded.dtype)
        for delay, tap in enumerate(taps):
            total = torch.addcmul(total, padded[:, delay : delay + time], tap)
        return F.silu(total) if self.silu else total


class ShortConvolutions(nn.ModuleList):
    """A short convolution for each of several parts (query, key, value); width 0 is none, and parts pass as they are."""

    def __init__(self, sizes: Iterable[int], width: int, *, bias: bool = False, silu: bool = False) -> None:
        super().__init__(ShortConvolution(size, width, bias=bias, silu=silu) for size in sizes if width)

    def __iter__(self) -> Iterator[ShortConvolution]:
        return cast("Iterator[ShortConvolution]", super().__iter__())

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Each [batch, time, channels] -> same."""
        return tuple(convolve(part) for convolve, part in zip(self, parts, strict=True)) if len(self) else parts

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The inputs of each before the first position."""
        return tuple(convolve.initial_state(batch_size) for convolve in self)

    def step(self, state: tuple[Tensor, ...], *parts: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One position: (state, each [batch, channels]) -> (the same shapes, next state)."""
        if not len(self):
            return parts, state
        stepped = [convolve.step(part, memory) for convolve, part, memory in zip(self, parts, state, strict=True)]
        return tuple(part for part, _ in stepped), tuple(memory for _, memory in stepped)

    def flops(self, seq_len: int) -> int:
        """Forward operations for `seq_len` positions."""
        return sum(convolve.flops(seq_len) for convolve in self)
