"""Filters of a long convolution, as a small network of time (Poli et al. 2023, section 3.3)."""

import math

import torch
from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.precision import without_autocast

SINE_FREQUENCY = 10.0
# Each filter decays to one hundredth somewhere between 0.3 and 1.5 of the longest sequence.
_SLOWEST, _FASTEST = math.log(0.01) / 1.5, math.log(0.01) / 0.3


class ImplicitFilter(nn.Module):
    """taps(t) = exp(-t |decay|) W_4 sin(f W_3 sin(f W_2 sin(f W_1 features(t)))) + skip at t = 0.

    The features (t, cos, sin) of the `max_length` positions are learned, and so are the frequencies f; `order` is the width of
    the network. All is computed in the parameters' precision, also under autocast: bfloat16 tells few positions apart.
    """

    def __init__(self, n_filters: int, *, order: int, max_length: int) -> None:
        super().__init__()
        time = torch.linspace(0, 1, max_length)
        self.features = nn.Parameter(torch.stack((time, (2 * math.pi * time).cos(), (2 * math.pi * time).sin()), dim=-1))
        self.features.decays = False  # type: ignore[attr-defined] # what positions look like, no weights (as in Hyena's own code)
        self.frequency = nn.Parameter(torch.full((order,), SINE_FREQUENCY))
        self.hidden = nn.ModuleList(nn.Linear(width, order) for width in (3, order, order))
        self.taps = nn.Linear(order, n_filters, bias=False)
        self.skip = nn.Parameter(torch.randn(n_filters))

    def forward(self, time: int) -> Tensor:
        """The first `time` taps of every filter: [n_filters, time]."""
        max_length, n_filters = self.features.shape[0], self.skip.shape[0]
        hidden = self.features[:time]
        with without_autocast(hidden.device):
            for linear in self.hidden:
                hidden = (self.frequency * linear(hidden)).sin()
            taps = self.taps(hidden).mT
        place = torch.arange(time, device=hidden.device) / max(max_length - 1, 1)
        decay = torch.linspace(_SLOWEST, _FASTEST, n_filters, device=hidden.device)
        taps = taps * (decay[:, None] * place).exp()
        return torch.cat((taps[:, :1] + self.skip[:, None], taps[:, 1:]), dim=1)

    def flops(self, time: int) -> int:
        """Forward operations for `time` taps of every filter."""
        return 2 * time * multiply_adds(*self.hidden, self.taps)
