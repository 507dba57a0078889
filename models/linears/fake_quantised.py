"""FakeQuantisedLinear: trains in full precision, multiplies with weights rounded to a storage format."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.linears.formats import format_of


class _StraightThrough(torch.autograd.Function):
    """What a weight is after it has been stored; its gradient passes as if nothing had been done."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, name: str) -> Tensor:
        known = format_of(name)
        return known.unpack(*known.pack(weight.float()), shape=weight.shape, dtype=weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grad, None


class FakeQuantisedLinear(nn.Linear):
    """A linear that trains as it will be stored: it multiplies by what its weight comes back as, the gradient is the weight's."""

    def __init__(self, linear: nn.Linear, format_name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.format, self.training = format_name, linear.training

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return F.linear(x, _StraightThrough.apply(self.weight, self.format), self.bias)

    def extra_repr(self) -> str:
        """What torch prints of a linear, and the format."""
        return f"{super().extra_repr()}, format={self.format}"
