"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split form."""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.ops.attention.rope_scaling import frequencies


def rotate(
    x: Tensor,
    positions: Tensor,
    base: float,
    *,
    d_rope: int | None = None,
    scaling: Mapping[str, float | bool | str] | None = None,
) -> Tensor:
    """Rotate [..., time, d_head] by `positions` [time]; channel i pairs with channel i + d_rope / 2.

    The first `d_rope` channels turn (None: all) by position times `frequencies`, the others pass. Angles are float32 whatever x
    is: bfloat16 cannot count past 256.
    """
    size = x.shape[-1] if d_rope is None else d_rope
    exact = positions.to(torch.promote_types(x.dtype, torch.float32))
    each, amplitude = frequencies(size, base, scaling, exact)
    angles = exact[:, None] * each
    cosine, sine = angles.cos(), angles.sin()
    if amplitude != 1.0:
        cosine, sine = amplitude * cosine, amplitude * sine
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x[..., :size].chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine, x[..., size:]), dim=-1)


def rotated_channels(d_head: int, rope_base: float, rope_fraction: float = 1.0) -> int:
    """How many channels of a head turn; a ValueError that names the option unless they make pairs."""
    if rope_base <= 0:
        raise ValueError(f"rope_base = {rope_base} must be positive, or null for no positions")
    if not 0 < rope_fraction <= 1:
        raise ValueError(f"rope_fraction = {rope_fraction} must be above 0 and at most 1")
    d_rope = d_head * rope_fraction
    if d_rope % 2:
        share = "" if rope_fraction == 1 else f"rope_fraction = {rope_fraction} of "
        raise ValueError(
            f"{share}the head size = {d_head} must be an even number to be rotated, not {d_rope:g}: choose other heads, or "
            "rope_base = null"
        )
    return round(d_rope)
