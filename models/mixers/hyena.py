"""Hyena: long implicit convolutions between gates (Poli et al. 2023, arXiv 2302.10866), and its multi-head form."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.attention.heads import merge_heads, split_heads
from models.ops.checks import at_least, split_evenly
from models.ops.convolutions.implicit_filter import ImplicitFilter
from models.ops.convolutions.long_convolution import (
    long_convolution,
    long_convolution_flops,
    outer_product_convolution,
    outer_product_convolution_flops,
)
from models.ops.convolutions.short_convolution import ShortConvolutions
from models.rack.contracts import Mixer


class Hyena(Mixer):
    """y = W_out (x_0 * (h conv (x_1 * v))), where x_0, x_1 and v are short convolutions of projections, of order 2.

    `expand` times d_model channels are mixed; `proj_groups` is how many channels share a projection, told apart by
    their short convolutions of width `d_conv`. With `n_heads` None every channel has its own filter h; with fewer
    heads a head of d_head channels shares one, and convolves all d_head ** 2 products of x_1 and v (Massaroli et al. 2023,
    arXiv 2310.18780); that form costs as much as attention. `filter_order` is the width of the filter's network.
    """

    fused: ClassVar[dict[str, tuple[str, ...]]] = {"input": ("outer", "inner", "value")}

    def __init__(
        self,
        d_model: int,
        max_length: int,
        *,
        expand: int = 1,
        n_heads: int | None = None,
        filter_order: int = 16,
        d_conv: int = 3,
        proj_groups: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, max_length=max_length, expand=expand, filter_order=filter_order, d_conv=d_conv)
        self.d_inner = expand * d_model
        self.n_heads = self.d_inner if n_heads is None else n_heads
        self.d_head = split_evenly("expand * d_model", self.d_inner, parts_name="n_heads", parts=self.n_heads)
        projected = split_evenly("expand * d_model", self.d_inner, parts_name="proj_groups", parts=proj_groups)
        self.max_length = max_length
        self.input = nn.Linear(d_model, 3 * projected)
        self.convolutions = ShortConvolutions([3 * projected] * proj_groups, d_conv, bias=True)
        self.filter = ImplicitFilter(self.n_heads, order=filter_order, max_length=max_length)
        self.output = nn.Linear(self.d_inner, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same, for time up to `max_length`."""
        time = x.shape[1]
        if time > self.max_length:
            raise ValueError(f"the sequence has {time} positions, but this Hyena's filters have max_length = {self.max_length}")
        projected = self.input(x)
        copies = self.convolutions(*[projected] * len(self.convolutions))
        outer, inner, value = (torch.cat(parts, -1) for parts in zip(*(copy.chunk(3, -1) for copy in copies), strict=True))
        return self.output(self._mix(outer, inner, value, taps=self.filter(time)).to(x.dtype))

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """What the MAD protocol counts: `filter_order` a channel, or with heads a matrix each.

        It is bookkeeping: run position by position, a long convolution needs all its past.
        """
        return self.d_inner * (self.filter.taps.in_features if self.d_head == 1 else self.d_head)

    def flops(self, seq_len: int) -> int:
        """Projections, short and long convolutions, and the filter's network."""
        projections = 2 * seq_len * multiply_adds(self.input, self.output)
        per_head = long_convolution_flops(seq_len) if self.d_head == 1 else outer_product_convolution_flops(seq_len, self.d_head)
        convolutions = self.convolutions.flops(seq_len) + self.n_heads * per_head
        return projections + convolutions + self.filter.flops(seq_len)

    def _mix(self, outer: Tensor, inner: Tensor, value: Tensor, *, taps: Tensor) -> Tensor:
        """The gates and the long convolution: each part and the result [batch, time, d_inner]."""
        if self.d_head == 1:
            return outer * long_convolution(inner * value, taps)
        outer, inner, value = (split_heads(part, self.n_heads) for part in (outer, inner, value))
        return merge_heads(outer_product_convolution(outer, inner, value, taps))
