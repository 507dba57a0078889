"""The speeds at which the states of a state-space model decay: S4D-real (Gu et al. 2022, arXiv 2206.11893)."""

import torch
from torch import Tensor


class LogRange:
    """log 1, log 2, ... along the first axis, the same along the others: mamba's A_log [d_state, channels]."""

    def __call__(self, parameter: Tensor) -> None:
        """Fill in place."""
        column = torch.arange(1.0, len(parameter) + 1, device=parameter.device).log()
        parameter.data.copy_(column.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter))
