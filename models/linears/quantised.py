"""QuantisedLinear: a linear whose weight is stored in few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.linears.dtypes import working_dtype
from models.linears.formats import format_of


class _Product(torch.autograd.Function):
    """x @ weight.T of a weight that is unpacked for the product, and again for its gradient: what is kept between is packed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, unpack: Callable[..., Tensor], *stored: Tensor) -> Tensor:
        return F.linear(x, unpack(*stored, dtype=x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        _, ctx.unpack, *stored = inputs
        ctx.save_for_backward(*stored)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors
        return grad @ ctx.unpack(*stored, dtype=grad.dtype), None, *(None for _ in stored)


class QuantisedLinear(nn.Linear):
    """A linear that stores its weight in a format (see `FORMATS`), in buffers: they are in its state, and get no gradient.

    It computes in its input's precision, or autocast's. `weight` is unpacked at every look, with the type that the weight had,
    or that the module has been cast to since; a cast leaves what is stored as it is.
    """

    def __init__(self, linear: nn.Linear, format_name: str, stored: Mapping[str, Tensor]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.format = format_name
        self.dtype: torch.dtype = linear.dtype if isinstance(linear, QuantisedLinear) else linear.weight.dtype  # not unpacked
        self.training = linear.training
        self.bias = linear.bias
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)

    def stored(self) -> dict[str, Tensor]:
        """What is stored of the weight, by name."""
        return {name: self.get_buffer(name) for name in format_of(self.format).names}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out_features, in_features], without gradient."""
        return self._unpack()(*self.stored().values(), dtype=self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        x = x.to(working_dtype(x))
        y: Tensor = _Product.apply(x, self._unpack(), *self.stored().values())
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """What torch prints of a linear, and the format."""
        return f"{super().extra_repr()}, format={self.format}"

    def _unpack(self) -> Callable[..., Tensor]:
        return partial(format_of(self.format).unpack, shape=(self.out_features, self.in_features))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantisedLinear:  # noqa: FBT001, FBT002
        before = self.stored()
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            if self.get_buffer(name).dtype != tensor.dtype:
                setattr(self, name, tensor.to(self.get_buffer(name).device))
        self.dtype = fn(next(iter(before.values())).new_empty(0, dtype=self.dtype)).dtype
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A copy between types would be another quantisation."""
        for name, tensor in self.stored().items():
            given = state_dict.get(f"{prefix}{name}", tensor)
            if given.dtype != tensor.dtype:
                rest[-1].append(f"{prefix}{name} is stored as {tensor.dtype} ({self.format}), not as {given.dtype}")
        super()._load_from_state_dict(state_dict, prefix, *rest)
