"""How much linears multiply."""

from torch import nn


def multiply_adds(*linears: nn.Linear) -> int:
    """Multiply-adds of the linears together, each applied once to one vector."""
    return sum(linear.weight.numel() for linear in linears)
