"""The short causal convolution as a module, and several of them side by side."""

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.ops.convolutions.causal_convolution import convolve_padded
from models.ops.kernels import run_kernel


class ShortConvolution(nn.Module):
    """`causal_convolution` with its weights, over [batch, time, channels]; `kernel` is that of the mixer around it."""

    kernel_op = "causal_convolution"

    def __init__(self, channels: int, width: int, *, bias: bool = False, silu: bool = False, kernel: str = "auto") -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.silu = silu
        # The name of a mixer's kernel is not one of the convolution's.
        self.kernel = "reference" if kernel == "reference" else "auto"

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, channels] -> same."""
        return run_kernel(self.kernel_op, self.kernel, x, self.weight, self.bias, silu=self.silu)

    def initial_state(self, batch_size: int) -> Tensor:
        """The inputs before the first position: zeros [batch, width - 1, channels]."""
        channels, width = self.weight.shape
        return self.weight.new_zeros(batch_size, width - 1, channels, dtype=state_dtype(self.weight))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One position: ([batch, channels], state) -> ([batch, channels], next state)."""
        window = torch.cat((state, x[:, None].to(state.dtype)), dim=1)
        return convolve_padded(window.to(x.dtype), self.weight, self.bias, silu=self.silu)[:, 0], window[:, 1:]

    def flops(self, seq_len: int) -> int:
        """Forward operations for `seq_len` positions."""
        return 2 * seq_len * self.weight.numel()


class ShortConvolutions(nn.ModuleList):
    """A short convolution for each of several parts (query, key, value); width 0 is none, and parts pass as they are."""

    def __init__(self, sizes: Iterable[int], width: int, *, bias: bool = False, silu: bool = False, kernel: str = "auto") -> None:
        super().__init__(ShortConvolution(size, width, bias=bias, silu=silu, kernel=kernel) for size in sizes if width)

    def __iter__(self) -> Iterator[ShortConvolution]:
        return cast("Iterator[ShortConvolution]", super().__iter__())

    def forward(self, *parts: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Each [batch, time, channels] -> same; where `attention_mask` [batch, time] is false, zeros are read."""
        if not len(self):
            return parts
        if attention_mask is not None:
            parts = tuple(part.masked_fill(~attention_mask[..., None], 0) for part in parts)
        return tuple(convolve(part) for convolve, part in zip(self, parts, strict=True))

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
