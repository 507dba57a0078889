"""A mixture of gated experts of which each position uses a few (Shazeer et al. 2017, arXiv 1701.06538)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linears.multiply_adds import multiply_adds
from models.ops.checks import at_least
from models.ops.experts import is_sorted_faster, sorted_experts
from models.ops.precision import in_float32
from models.ops.routing import check_active, top_k_weights
from models.rack.contracts import ChannelMixer
from models.rack.padding import mean_over_tokens
from models.rack.reports import is_collecting, report


class MoE(ChannelMixer):
    """sum_e w_e down_e(up_e(x) * GELU(gate_e(x))), w the softmax over the `n_active` largest of the router's logits.

    The other experts weigh exactly zero. An expert is computed at the positions that chose it, and `flops` counts that. All are
    computed everywhere, side by side in one product each, where the linears have biases, adapters or stored weights, and where
    `is_sorted_faster` says no: for few positions, in packed models, on a GPU in other than bfloat16.
    `d_expert` is the width of one (None: d_model / n_experts, rounded down, at least 1). `n_shared` experts beside them, one of
    `n_shared * d_expert`, see every position with weight one (Dai et al. 2024, arXiv 2401.06066).

    To whoever collects it reports `load_balance` (see there), as a loss of weight `balance`, and `largest_expert_share`, the
    share of all choices that the most chosen expert has; 1 / n_experts is the best. Pads count in neither.
    """

    takes_attention_mask = True

    def __init__(
        self,
        d_model: int,
        *,
        n_experts: int = 8,
        n_active: int = 2,
        d_expert: int | None = None,
        n_shared: int = 0,
        balance: float = 0.01,
    ) -> None:
        super().__init__()
        check_active(n_experts, n_active)
        self.d_expert = max(1, d_model // n_experts) if d_expert is None else d_expert
        at_least(1, d_expert=self.d_expert)
        at_least(0, n_shared=n_shared)
        if balance < 0:
            raise ValueError(f"balance = {balance} must be at least 0: a negative weight would draw all positions to one expert")
        self.n_experts, self.n_active, self.n_shared, self.balance = n_experts, n_active, n_shared, balance
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate = nn.Linear(d_model, n_experts * self.d_expert, bias=False)
        self.up = nn.Linear(d_model, n_experts * self.d_expert, bias=False)
        self.down = nn.Linear(n_experts * self.d_expert, d_model, bias=False)
        if n_shared:
            self.shared_gate = nn.Linear(d_model, n_shared * self.d_expert, bias=False)
            self.shared_up = nn.Linear(d_model, n_shared * self.d_expert, bias=False)
            self.shared_down = nn.Linear(n_shared * self.d_expert, d_model, bias=False)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mix the channels: [..., d_model] -> same."""
        logits = self.router(x)
        if is_collecting() and (self.balance or not self.training):
            balance, largest = load_balance(logits, self.n_active, attention_mask=attention_mask)
            report("load_balance", balance, weight=self.balance)
            report("largest_expert_share", largest)
        mixed = self._routed(x, logits)
        if not self.n_shared:
            return mixed
        return mixed + self.shared_down(self.shared_up(x) * F.gelu(self.shared_gate(x)))

    def _routed(self, x: Tensor, logits: Tensor) -> Tensor:
        experts, rows = (self.n_experts, self.d_expert), x.reshape(-1, x.shape[-1])
        if self._has_plain_experts() and is_sorted_faster(rows, self.n_experts, self.n_active, self.d_expert):
            gate, up = (linear.weight.unflatten(0, experts) for linear in (self.gate, self.up))
            down = self.down.weight.unflatten(1, experts).transpose(0, 1)
            mixed = sorted_experts(rows, logits.reshape(-1, self.n_experts), gate, up, down, n_active=self.n_active)
            return mixed.view(x.shape)
        hidden = self.up(x) * F.gelu(self.gate(x))
        weights = top_k_weights(logits, self.n_active)[..., None].to(hidden.dtype)
        return self.down((hidden.unflatten(-1, experts) * weights).flatten(-2))

    def _has_plain_experts(self) -> bool:
        """Whether the experts are nothing but their weights: adapters and stored weights are computed by their own linears."""
        return all(type(linear) is nn.Linear and linear.bias is None for linear in (self.gate, self.up, self.down))

    def route(self, x: Tensor) -> Tensor:
        """The weight of every expert at every position: [..., d_model] -> [..., n_experts], zero for the inactive."""
        return top_k_weights(self.router(x), self.n_active)

    def flops(self, seq_len: int) -> int:
        """The router, the shared experts, and the active ones of the others, or all where the linears are not plain ones."""
        experts = (self.gate, self.up, self.down)
        others = (layer for layer in self.children() if isinstance(layer, nn.Linear) and layer not in experts)
        n_computed = self.n_active if self._has_plain_experts() else self.n_experts
        return 2 * seq_len * (multiply_adds(*others) + multiply_adds(*experts) * n_computed // self.n_experts)


@in_float32
def load_balance(logits: Tensor, n_active: int, *, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """n_experts * sum_e f_e p_e, and the largest of f, for router logits [..., n_experts] (Fedus et al. 2021, arXiv 2101.03961).

    f_e is the share of the choices of `n_active` experts at every position that fell on e, and has no gradient; p_e is the mean
    probability of e before the choice. Balanced, the product is 1, at worst n_experts / n_active. The positions of one call
    are balanced among themselves: a batch that is computed in pieces is balanced in each. Pads of the mask [...] are left out.
    """
    chosen = torch.zeros_like(logits).scatter(-1, logits.topk(n_active, dim=-1).indices, 1.0)
    shares = mean_over_tokens(chosen, attention_mask) / n_active
    return logits.shape[-1] * (shares * mean_over_tokens(logits.softmax(-1), attention_mask)).sum(), shares.amax()
