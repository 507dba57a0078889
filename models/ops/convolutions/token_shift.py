"""Token shift: every position also sees the one before it (RWKV; Peng et al. 2023, arXiv 2305.13048)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shift(x: Tensor) -> Tensor:
    """The position before each: [..., time, channels] -> same; zeros before the first."""
    return F.pad(x, (0, 0, 1, -1))


def toward(previous: Tensor, x: Tensor, share: Tensor) -> Tensor:
    """The input moved towards the position before it by `share` [..., channels]: x + share (previous - x)."""
    return x + share.to(x.dtype) * (previous - x)


def falling(channels: int, power: float) -> Tensor:
    """How far channels move at the start [channels]: 1 - (i / channels)^power, the first wholly to the position before."""
    return 1 - (torch.arange(channels) / channels) ** power


class LowRank(nn.Module):
    """up(activation(down(x))): [..., d_model] -> [..., d_out] through `rank` channels (None: d_model, and no activation).

    With `start` [d_out] it starts near that, as the bias of `up`; without, there is no bias.
    """

    def __init__(
        self,
        d_model: int,
        rank: int,
        *,
        d_out: int | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.down = nn.Linear(d_model, rank, bias=False)
        self.up = nn.Linear(rank, d_model if d_out is None else d_out, bias=False)
        if start is not None:
            nn.init.uniform_(self.up.weight, -0.01, 0.01)
            bias = nn.Parameter(start)
            # The spread over channels: a model that zeroes the biases of its linears must leave this one.
            bias.keep_init = True  # type: ignore[attr-defined]
            self.up.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_out]."""
        hidden = self.down(x)
        return self.up(hidden if self.activation is None else self.activation(hidden))


class DynamicShift(nn.Module):
    """Token shift by a share that depends on the input, for each of several readers (Peng et al. 2024, arXiv 2404.05892).

    Reader z gets toward(x, share_z(toward(x, mu))) with share_z of low rank; `powers` say how each share starts.
    """

    def __init__(self, d_model: int, rank: int, *, powers: dict[str, float]) -> None:
        super().__init__()
        self.mu = nn.Parameter(falling(d_model, 1.0))
        self.shares = nn.ModuleDict(
            {name: LowRank(d_model, rank, activation=torch.tanh, start=falling(d_model, power)) for name, power in powers.items()}
        )

    def forward(self, x: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """The input of every reader, in order: [..., d_model] each."""
        between = toward(previous, x, self.mu)
        return tuple(toward(previous, x, share(between)) for share in self.shares.values())
