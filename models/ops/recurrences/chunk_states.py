"""The states of fast-weight memories before each chunk, from what the chunks add; a loop over chunks."""

import torch
from torch import Tensor


def decayed_before_each(added: Tensor, decay: Tensor) -> Tensor:
    """The decayed sum of what earlier chunks added; the first chunk has zeros.

    Shapes: added [..., n_chunks, d_key, d_value], decay over a chunk [..., n_chunks, d_key or 1, 1] -> the shape of `added`.
    """
    states = [torch.zeros_like(added[..., 0, :, :])]
    for more, fade in zip(added.unbind(-3)[:-1], decay.unbind(-3)[:-1], strict=True):
        states.append(torch.addcmul(more, fade, states[-1]))
    return torch.stack(states, dim=-3)
