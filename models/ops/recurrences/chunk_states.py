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


def corrected_before_each(
    written: Tensor, erased: Tensor, key: Tensor, decay: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The state S before each chunk [..., n_chunks, d_key, d_value], and the chunks' updates U [..., n_chunks, chunk, d_value].

    U = written - erased S, and the next S is decay S + key^T U + added.

    Shapes: written [..., n_chunks, chunk, d_value], erased and key [..., n_chunks, chunk, d_key], decay [..., n_chunks, d_key or
    1, 1], added like S.
    """
    state = key.new_zeros(*key.shape[:-3], key.shape[-1], written.shape[-1])
    states, updates = [], []
    more = (0.0,) * written.shape[-3] if added is None else added.unbind(-3)
    parts = (part.unbind(-3) for part in (written, erased, key, decay))
    for write, erase, address, fade, rest in zip(*parts, more, strict=True):
        update = write - erase @ state
        states.append(state)
        updates.append(update)
        state = torch.addcmul(address.mT @ update + rest, fade, state)
    return torch.stack(states, dim=-3), torch.stack(updates, dim=-3)
