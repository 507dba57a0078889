"""Low-rank adapters of linears: LoRA (Hu et al. 2021, arXiv 2106.09685), in any mixer."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """x -> scale * up(down(dropout(x))), of low rank; `up` starts at zero, so that nothing changes at first.

    `scale` is alpha / rank, or with `rslora` alpha / sqrt(rank), which keeps learning stable at high ranks (Kalajdzievski 2023,
    arXiv 2312.03732).
    """

    def __init__(self, d_in: int, d_out: int, *, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False) -> None:
        super().__init__()
        self.rank = rank
        self.down = nn.Parameter(torch.empty(rank, d_in))
        self.up = nn.Parameter(torch.zeros(d_out, rank))
        self.tune(alpha=alpha, dropout=dropout, rslora=rslora)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def tune(self, *, alpha: float, dropout: float, rslora: bool) -> None:
        """Set what may change while it learns."""
        self.scale = alpha / (math.sqrt(self.rank) if rslora else self.rank)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]."""
        x = x if self.dropout is None else self.dropout(x)
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up) * self.scale

    def weight(self) -> Tensor:
        """What it adds to the linear's weight, without dropout: [d_out, d_in]."""
        return self.scale * self.up @ self.down


class AdaptedLinear(nn.Linear):
    """A linear, and adapters by name whose outputs are added to its own."""

    def __init__(self, linear: nn.Linear, adapters: Mapping[str, Adapter]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Refuses a weight that is stored in few bits: it would be unpacked here, once and for all.
        self.register_parameter("weight", linear.weight)  # type: ignore[arg-type]
        self.bias = linear.bias
        self.adapters = nn.ModuleDict(adapters)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        y = super().forward(x)
        for adapter in self.adapters.values():
            y = y + adapter(x)
        return y


def set_bias(linear: nn.Linear, *, has_bias: bool) -> None:
    """Give a linear a bias of zeros, if it has none, or take away the one that it has."""
    if not has_bias:
        linear.bias = None  # type: ignore[assignment]
    elif linear.bias is None:
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


def replace(module: nn.Module, name: str, part: nn.Module) -> None:
    """Put another part at the place of that name in a module."""
    place, _, child = name.rpartition(".")
    module.get_submodule(place)._modules[child] = part  # noqa: SLF001 - setattr knows no numbers


def adapters_of(linear: nn.Module) -> dict[str, Adapter]:
    """The adapters of a linear by name, none if it is not adapted."""
    named = linear.adapters.items() if isinstance(linear, AdaptedLinear) else ()
    return {name: adapter for name, adapter in named if isinstance(adapter, Adapter)}


def merged_weight(linear: nn.Linear) -> Tensor:
    """The weight of a linear of any kind with what its adapters add: [out_features, in_features]."""
    return sum((adapter.weight() for adapter in adapters_of(linear).values()), start=linear.weight)


def tied_linears(model: nn.Module) -> dict[str, str]:
    """The linears whose weight another module has too, such as a head tied to its embedding: by name, where else it is.

    What is merged into the weight of one would change the other as well. A linear that stands at two places is one module.
    """
    places: dict[nn.Parameter, dict[str, str]] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(prefix=name, recurse=False):
            places.setdefault(parameter, {})[name] = own
    tied = {}
    for name, linear in model.named_modules():
        # One that is stored in few bits is no parameter.
        weight = linear._parameters.get("weight") if isinstance(linear, nn.Linear) else None  # noqa: SLF001
        others = [own for place, own in places[weight].items() if place != name] if weight is not None else []
        if others:
            tied[name] = others[0]
    return tied


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name, in any module, is an adapter's."""
    return ".adapters." in f".{name}"
