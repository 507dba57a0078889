"""Cached states at a given context length, made without running the context: to time one decoding step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from models.rack.contracts import Mixer


def state_at(mixer: Mixer, step: Callable[..., Any], batch_size: int, d_model: int, context: int) -> Any:
    """A state of the shapes that the mixer has after `context` positions of its `step`, with any content.

    What grows from one step to the next is a cache of positions; how long it is comes from `state_size`, which knows of windows.
    Stepping through a context of 64k would copy a cache of gigabytes 64k times.
    """
    parameter = next(mixer.parameters(), torch.empty(0))
    x = parameter.new_zeros(batch_size, d_model)
    first = step(x, mixer.initial_state(batch_size))[1]
    second = step(x, first)[1]
    (before, layout), (after, _) = tree_flatten(first), tree_flatten(second)
    growth = [
        [int(b) - int(a) for a, b in zip(one.shape, two.shape, strict=True)] for one, two in zip(before, after, strict=True)
    ]
    per_position = sum((two.numel() - one.numel()) // batch_size for one, two in zip(before, after, strict=True))
    if not per_position:
        return second
    n_positions = 1 + (mixer.state_size(context) - mixer.state_size(1)) // per_position
    return tree_unflatten([_grown(one, steps, n_positions) for one, steps in zip(before, growth, strict=True)], layout)


def _grown(tensor: Tensor, steps: list[int], n_positions: int) -> Tensor:
    """The tensor after one step, as long as after `n_positions`."""
    shape = [size + step * (n_positions - 1) for size, step in zip(tensor.shape, steps, strict=True)]
    return tensor if shape == list(tensor.shape) else tensor.new_zeros(shape)
