"""Routes positions to experts: the weights of the k experts that each position uses."""

import torch
from torch import Tensor


def top_k_weights(logits: Tensor, n_active: int) -> Tensor:
    """The softmax over the `n_active` largest of the last axis: [..., n_experts] -> same, exactly zero for the others."""
    best = logits.topk(n_active, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values).softmax(-1)


def check_active(n_experts: int, n_active: int) -> None:
    """Refuse a number of active experts with which a router cannot learn or cannot choose."""
    if not 2 <= n_active <= n_experts:
        raise ValueError(
            f"n_active = {n_active} must be at least 2 (the softmax over one weight is constant, and its router would not "
            f"learn) and at most n_experts = {n_experts}"
        )
