"""The real-gated linear recurrent unit (De et al. 2024, arXiv 2402.19427), an LRU (Orvieto et al. 2023, arXiv 2303.06349)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.dtypes import state_dtype
from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least
from models.ops.convolutions.short_convolution import ShortConvolution
from models.ops.precision import in_float32
from models.rack.contracts import Mixer

SHARPNESS = 8.0
_SLOWEST, _FASTEST = 0.999, 0.9

LRUState = tuple[Tensor, Tensor]


class LRU(Mixer):
    """One decaying number a channel, between a gated pair of projections: Griffin's recurrent block.

    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (sigmoid(write(u_t)) u_t) with log a_t = -8 softplus(decay) sigmoid(rate(u_t)), and the
    output W_out (h_t GELU(gate(x_t))), for `expand` * d_model channels; u is a projection after a causal short convolution of
    width `d_conv`. `rate` and `write` are full matrices (the paper's are block-diagonal). The decays start such that a channel
    keeps 0.9 to 0.999 a step where the rate is 1.
    """

    has_step = True

    def __init__(self, d_model: int, *, expand: int = 1, d_conv: int = 4) -> None:
        super().__init__()
        at_least(1, expand=expand, d_conv=d_conv)
        self.d_inner = expand * d_model
        self.input = nn.Linear(d_model, self.d_inner, bias=False)
        self.gate = nn.Linear(d_model, self.d_inner, bias=False)
        self.convolution = ShortConvolution(self.d_inner, d_conv, bias=True)
        self.rate = nn.Linear(self.d_inner, self.d_inner)
        self.write = nn.Linear(self.d_inner, self.d_inner)
        self.output = nn.Linear(self.d_inner, d_model, bias=False)
        kept = torch.empty(self.d_inner).uniform_(_FASTEST, _SLOWEST)
        self.decay = nn.Parameter(torch.expm1(-kept.log() / SHARPNESS).log())

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same."""
        log_decay, added = self._recurrence(self.convolution(self.input(x)))
        return self._read_out(diagonal_scan(log_decay, added), x)

    def initial_state(self, batch_size: int) -> LRUState:
        """The channels [batch, d_inner] and the convolution's last inputs."""
        channels = self.decay.new_zeros(batch_size, self.d_inner, dtype=state_dtype(self.decay))
        return channels, self.convolution.initial_state(batch_size)

    def step(self, x: Tensor, state: LRUState) -> tuple[Tensor, LRUState]:
        """One step of the recurrence."""
        channels, inputs = state
        inner, inputs = self.convolution.step(self.input(x), inputs)
        log_decay, added = self._recurrence(inner)
        channels = log_decay.exp() * channels + added
        return self._read_out(channels, x), (channels, inputs)

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """A number a channel."""
        return self.d_inner

    def flops(self, seq_len: int) -> int:
        """Projections, gates, the short convolution, and two multiply-adds a channel for the scan."""
        linears = multiply_adds(self.input, self.gate, self.rate, self.write, self.output)
        return 2 * seq_len * (linears + 2 * self.d_inner) + self.convolution.flops(seq_len)

    @torch.no_grad()
    def set_memory_length(self, n_positions: int) -> tuple[str, ...]:
        """By the decay: 8 softplus(decay) / 2 = 1 / n_positions, where the input says nothing."""
        self.decay.fill_(math.log(math.expm1(2 / (SHARPNESS * n_positions))))
        return ("decay",)

    def _recurrence(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        """[..., d_inner] -> log decays and what is added to the channels, each [..., d_inner]."""
        return _gated(self.rate(inner), self.write(inner), inner, self.decay)

    def _read_out(self, channels: Tensor, x: Tensor) -> Tensor:
        return self.output(channels.to(x.dtype) * F.gelu(self.gate(x), approximate="tanh"))


@in_float32
def _gated(rate: Tensor, write: Tensor, inner: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    log_decay = -SHARPNESS * F.softplus(decay) * rate.sigmoid()
    # The root's slope has no bound where nothing decays: what is written there is next to nothing anyway.
    scale = (-torch.expm1(2 * log_decay)).clamp(min=1e-6).sqrt()
    return log_decay, scale * write.sigmoid() * inner


@in_float32
def diagonal_scan(log_decay: Tensor, added: Tensor) -> Tensor:
    """h_t = exp(log_decay_t) h_{t-1} + added_t: [batch, time, channels] twice, log_decay <= 0 -> same.

    About sqrt(time) chunks side by side, then what reaches each chunk from those before it. Decays are only ever multiplied,
    never divided by: nothing overflows.
    """
    time = added.shape[1]
    chunk = math.isqrt(time - 1) + 1
    log_decay, added = (F.pad(part, (0, 0, 0, -time % chunk)).unflatten(1, (-1, chunk)) for part in (log_decay, added))
    states = [added[:, :, 0]]
    for fade, more in zip(log_decay.exp().unbind(2)[1:], added.unbind(2)[1:], strict=True):
        states.append(torch.addcmul(more, fade, states[-1]))
    within, reach = torch.stack(states, dim=2), log_decay.cumsum(2).exp()
    before = [torch.zeros_like(within[:, 0, -1])]
    for fade, end in zip(reach[:, :-1, -1].unbind(1), within[:, :-1, -1].unbind(1), strict=True):
        before.append(torch.addcmul(end, fade, before[-1]))
    return torch.addcmul(within, reach, torch.stack(before, dim=1)[:, :, None]).flatten(1, 2)[:, :time]
