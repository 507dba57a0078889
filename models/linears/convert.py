"""Converts linears between dense, quantised and fake-quantised form, with or without adapters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.linears.adapters import AdaptedLinear, Adapter, adapters_of, is_adapter, merged_weight
from models.linears.fake_quantised import FakeQuantisedLinear
from models.linears.formats import packed
from models.linears.quantised import QuantisedLinear


class AdaptedQuantisedLinear(AdaptedLinear, QuantisedLinear):
    """Adapters on a stored weight (QLoRA)."""

    def __init__(self, linear: QuantisedLinear, adapters: Mapping[str, Adapter]) -> None:
        QuantisedLinear.__init__(self, linear, linear.format, linear.stored())
        self.adapters = nn.ModuleDict(adapters)


class AdaptedFakeQuantisedLinear(AdaptedLinear, FakeQuantisedLinear):
    """Adapters on a weight that trains as it will be stored."""

    def __init__(self, linear: FakeQuantisedLinear, adapters: Mapping[str, Adapter]) -> None:
        FakeQuantisedLinear.__init__(self, linear, linear.format)
        self.adapters = nn.ModuleDict(adapters)


def with_adapters(linear: nn.Linear, adapters: Mapping[str, Adapter]) -> AdaptedLinear:
    """A linear of any kind with adapters by name, after those that it has."""
    adapters = {**adapters_of(linear), **adapters}
    if isinstance(linear, QuantisedLinear):
        return AdaptedQuantisedLinear(linear, adapters)
    if isinstance(linear, FakeQuantisedLinear):
        return AdaptedFakeQuantisedLinear(linear, adapters)
    return AdaptedLinear(linear, adapters)


def quantised(linear: nn.Linear, format_name: str) -> QuantisedLinear:
    """The linear with its weight stored in that format, itself if it is; bias and adapters are shared with it."""
    if isinstance(linear, QuantisedLinear):
        if linear.format == format_name:
            return linear
        raise ValueError(f"format = {format_name!r}: the weight is stored as {linear.format} already; make it dense first")
    stored = QuantisedLinear(linear, format_name, packed(linear.weight, format_name))
    return AdaptedQuantisedLinear(stored, adapters_of(linear)) if isinstance(linear, AdaptedLinear) else stored


def fake_quantised(linear: nn.Linear, format_name: str) -> FakeQuantisedLinear:
    """The linear, of which weight, bias and adapters are shared, trained as it will be stored in that format, itself if it is."""
    if isinstance(linear, FakeQuantisedLinear) and linear.format == format_name:
        return linear
    if isinstance(linear, QuantisedLinear):
        raise ValueError(  # noqa: TRY004 - of the right type, in the wrong state
            f"format = {format_name!r}: a stored weight ({linear.format}) does not train; make it dense first"
        )
    fake = FakeQuantisedLinear(linear, format_name)
    return AdaptedFakeQuantisedLinear(fake, adapters_of(linear)) if isinstance(linear, AdaptedLinear) else fake


def dequantised(linear: QuantisedLinear) -> nn.Linear:
    """The linear with a dense weight of what is stored, which trains; bias and adapters are shared with it."""
    dense = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    dense.weight, dense.bias = nn.Parameter(linear.weight.clone()), linear.bias
    dense.training = linear.training
    return AdaptedLinear(dense, adapters_of(linear)) if isinstance(linear, AdaptedLinear) else dense


@torch.no_grad()
def dense_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as it would be without adapters and stored weights: those are unpacked, and adapters added in."""
    state = {name: tensor for name, tensor in module.state_dict().items() if not is_adapter(name)}
    for name, linear in module.named_modules(remove_duplicate=False):
        if isinstance(linear, QuantisedLinear):
            for stored in linear.stored():
                del state[f"{name}.{stored}"]
        if isinstance(linear, nn.Linear):
            state[f"{name}.weight"] = merged_weight(linear).detach()
    return state
