"""Tells whether torch.func's transforms are at work."""

import torch


def is_transformed() -> bool:
    """Whether a transform such as the vmap of packed training is around: then shapes must not depend on data."""
    return torch._C._functorch.maybe_current_level() is not None  # noqa: SLF001 - there is no public way to ask
