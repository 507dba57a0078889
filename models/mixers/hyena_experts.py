"""A mixture of small Hyenas, of which each position reads a few (Poli et al. 2024, arXiv 2403.17844)."""

from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least
from models.ops.convolutions.implicit_filter import ImplicitFilter
from models.ops.convolutions.long_convolution import long_convolution, long_convolution_flops
from models.ops.convolutions.short_convolution import ShortConvolution
from models.ops.routing import check_active, top_k_weights
from models.rack.contracts import Mixer


class HyenaExperts(Mixer):
    """y = W_out sum_e w_e (x_0 * (h conv (x_1 * v)))_e, w the softmax over the `n_active` largest of the router's logits.

    An expert is a Hyena of order 2 (Poli et al. 2023, arXiv 2302.10866) on `d_expert` channels of its own (None: d_model /
    n_experts, rounded down, at least 1), each channel with its own filter; W_out is the experts' one. The router decides at the
    position that reads: what the others weigh is exactly zero there, but a long convolution needs its past, so that all
    `n_experts` run at every position, and `flops` counts that. `d_conv` and `filter_order` are those of Hyena.
    """

    def __init__(
        self,
        d_model: int,
        max_length: int,
        *,
        n_experts: int = 8,
        n_active: int = 2,
        d_expert: int | None = None,
        filter_order: int = 16,
        d_conv: int = 3,
    ) -> None:
        super().__init__()
        check_active(n_experts, n_active)
        self.d_expert = max(1, d_model // n_experts) if d_expert is None else d_expert
        at_least(1, max_length=max_length, d_expert=self.d_expert, filter_order=filter_order, d_conv=d_conv)
        self.n_experts, self.n_active, self.max_length = n_experts, n_active, max_length
        self.d_inner = n_experts * self.d_expert
        self.router = nn.Linear(d_model, n_experts)
        self.input = nn.Linear(d_model, 3 * self.d_inner)
        self.convolution = ShortConvolution(3 * self.d_inner, d_conv, bias=True)
        self.filter = ImplicitFilter(self.d_inner, order=filter_order, max_length=max_length)
        self.output = nn.Linear(self.d_expert, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the sequence: [batch, time, d_model] -> same, for time up to `max_length`."""
        time = x.shape[1]
        if time > self.max_length:
            raise ValueError(
                f"the sequence has {time} positions, but this HyenaExperts' filters have max_length = {self.max_length}"
            )
        outer, inner, value = self.convolution(self.input(x)).chunk(3, dim=-1)
        mixed = (outer * long_convolution(inner * value, self.filter(time))).to(x.dtype)
        weights = top_k_weights(self.router(x), self.n_active).to(x.dtype)
        return self.output((weights[..., None] * mixed.unflatten(-1, (self.n_experts, self.d_expert))).sum(-2))

    def state_size(self, seq_len: int) -> int:  # noqa: ARG002
        """What the MAD protocol counts, `filter_order` a channel; it is bookkeeping, as for Hyena."""
        return self.d_inner * self.filter.taps.in_features

    def flops(self, seq_len: int) -> int:
        """Projections, short and long convolutions, and the filter's network."""
        projections = 2 * seq_len * multiply_adds(self.router, self.input, self.output)
        convolutions = self.convolution.flops(seq_len) + self.d_inner * long_convolution_flops(seq_len)
        return projections + convolutions + self.filter.flops(seq_len)
