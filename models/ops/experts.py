"""Gated experts, each of them computed at the positions that chose it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.linears.dtypes import state_dtype, working_dtype
from models.ops.transforms import is_transformed

LEAST_SAVED = 2**23
"""Multiply-adds for each expert that sorting must save to be worth its time; on a CPU 2**22 were, with gradients up to 2**24."""


def is_sorted_faster(x: Tensor, n_experts: int, n_active: int, d_expert: int) -> bool:
    """Whether `sorted_experts` should run on x [positions, d_model], and not a product with all experts.

    It saves the idle experts' products, and costs some time of its own. How many positions an expert has is data: torch.func's
    transforms do not see it, and for a GPU's the host would have to wait. So there it runs only where torch's grouped product
    reads it on the device.
    """
    if is_transformed():
        return False
    if x.is_meta:  # where operations are counted, whatever the size
        return True
    n_positions, d_model = x.shape
    is_worth_it = 3 * n_positions * (n_experts - n_active) * d_expert * d_model >= n_experts * LEAST_SAVED
    return is_worth_it and (x.device.type == "cpu" or _has_grouped_product(x, d_expert))


def sorted_experts(x: Tensor, logits: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, n_active: int) -> Tensor:
    """sum_e w_e down_e (up_e x * GELU(gate_e x)) over the experts with the `n_active` largest logits, w the softmax over these.

    Shapes: x [positions, d_model], logits [positions, n_experts], gate and up [n_experts, d_expert, d_model], down [n_experts,
    d_model, d_expert] -> x's, in the precision that products are computed in. Each position stands once for each of its
    experts, in their order, so that an expert's rows lie together.
    """
    best = logits.topk(n_active, dim=-1)
    experts, order = best.indices.flatten().sort(stable=True)
    ends = torch.searchsorted(experts, torch.arange(len(gate), device=x.device), right=True, out_int32=True)
    positions, dtype = order // n_active, working_dtype(x)
    rows, weights = x.to(dtype).index_select(0, positions), best.values.softmax(-1).flatten()[order, None].to(dtype)
    products = _one_by_one if x.device.type in ("cpu", "meta") else _grouped
    mixed = products(rows, weights, (gate, up, down), ends)
    sums = mixed.new_zeros(x.shape, dtype=state_dtype(mixed))
    return sums.index_add(0, positions, mixed.to(sums.dtype)).to(dtype)


def _one_by_one(rows: Tensor, weights: Tensor, experts: tuple[Tensor, ...], ends: Tensor) -> Tensor:
    """A loop over the experts, whose rows end at `ends`: faster on a CPU than torch's grouped product, and takes any size."""
    n_experts = len(ends)
    # Tensors without numbers are counted as if the experts were chosen equally often: together they take and compute the same.
    has_numbers = rows.untyped_storage().device.type != "meta"
    places = ends[:-1].tolist() if has_numbers else [len(rows) * number // n_experts for number in range(1, n_experts)]
    parts = zip(rows.tensor_split(places), weights.tensor_split(places), *(part.unbind() for part in experts), strict=True)
    return torch.cat([F.linear(F.linear(own, up) * F.gelu(F.linear(own, gate)) * w, down) for own, w, gate, up, down in parts])


def _grouped(rows: Tensor, weights: Tensor, experts: tuple[Tensor, ...], ends: Tensor) -> Tensor:
    """As `_one_by_one`, in three products that read `ends` on the device. Autocast does not know them."""
    gate, up, down = (part.to(rows.dtype).mT for part in experts)
    hidden = F.grouped_mm(rows, up, offs=ends) * F.gelu(F.grouped_mm(rows, gate, offs=ends)) * weights
    return F.grouped_mm(hidden, down, offs=ends)


def _has_grouped_product(x: Tensor, d_expert: int) -> bool:
    """Whether torch has its grouped product on this GPU: for bfloat16, and rows of whole 16 bytes."""
    is_known = hasattr(F, "grouped_mm") and x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0)
    return is_known and working_dtype(x) == torch.bfloat16 and x.shape[-1] % 8 == 0 and d_expert % 8 == 0
