"""A mixture of gated experts of which each position uses a few (Shazeer et al. 2017, arXiv 1701.06538)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mixer import ChannelMixer
from models.ops.checks import at_least
from models.ops.linears import multiply_adds


class MoE(ChannelMixer):
    """sum_e w_e down_e(up_e(x) * GELU(gate_e(x))), w the softmax over the `n_active` largest of the router's logits.

    The other experts weigh exactly zero and get no gradient. All `n_experts` are computed, side by side in one product each:
    `flops` counts that. `d_expert` is the width of one (None: d_model / n_experts, rounded down, at least 1). There is no
    balancing loss.
    """

    def __init__(self, d_model: int, *, n_experts: int = 8, n_active: int = 2, d_expert: int | None = None) -> None:
        super().__init__()
        if not 2 <= n_active <= n_experts:
            raise ValueError(
                f"n_active = {n_active} must be at least 2 (the softmax over one weight is constant, and its router would not "
                f"learn) and at most n_experts = {n_experts}"
            )
        self.d_expert = max(1, d_model // n_experts) if d_expert is None else d_expert
        at_least(1, d_expert=self.d_expert)
        self.n_experts, self.n_active = n_experts, n_active
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate = nn.Linear(d_model, n_experts * self.d_expert, bias=False)
        self.up = nn.Linear(d_model, n_experts * self.d_expert, bias=False)
        self.down = nn.Linear(n_experts * self.d_expert, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels: [..., d_model] -> same."""
        hidden = self.up(x) * F.gelu(self.gate(x))
        weighted = hidden.unflatten(-1, (self.n_experts, self.d_expert)) * self.route(x)[..., None].to(hidden.dtype)
        return self.down(weighted.flatten(-2))

    def route(self, x: Tensor) -> Tensor:
        """The weight of every expert at every position: [..., d_model] -> [..., n_experts], zero for the inactive."""
        logits = self.router(x)
        best = logits.topk(self.n_active, dim=-1)
        return torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values).softmax(-1)

    def flops(self, seq_len: int) -> int:
        """The router and all experts, active or not."""
        return 2 * seq_len * multiply_adds(self.router, self.gate, self.up, self.down)
