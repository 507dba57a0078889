"""Counts the multiply-adds of linears, for FLOP formulas."""

from torch import nn

from models.linears.adapters import AdaptedLinear


def multiply_adds(*linears: nn.Linear) -> int:
    """Multiply-adds of the linears together, adapters included, each applied once to one vector."""
    return sum(_multiply_adds(linear) for linear in linears)


def _multiply_adds(linear: nn.Linear) -> int:
    adapters = linear.adapters.parameters() if isinstance(linear, AdaptedLinear) else ()
    return linear.in_features * linear.out_features + sum(weight.numel() for weight in adapters)
