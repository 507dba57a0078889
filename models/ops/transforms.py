"""What torch.func's transforms, and second derivatives, ask of operations with backward passes of their own."""

import torch


def is_transformed() -> bool:
    """Whether a transform such as the vmap of packed training is around: then shapes must not depend on data."""
    return torch._C._functorch.maybe_current_level() is not None  # noqa: SLF001 - there is no public way to ask


def refuse_second_derivatives() -> None:
    """For backward passes that take what was kept for constants.

    Under torch.func every backward pass is one that could be differentiated, so there nothing is refused.

    Raises:
        NotImplementedError: if this one is to be differentiated (`create_graph=True`).
    """
    if torch.is_grad_enabled() and not is_transformed():
        raise NotImplementedError("create_graph=True: this recurrence has no second derivatives")
