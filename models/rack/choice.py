"""The choice that a searchable layer keeps: several parts with weights of their own, of which one is active."""

from collections.abc import Mapping

from torch import Tensor, nn

STOCHASTIC = "stochastic"
"""The kind, in both registries, of a part that is still to be chosen."""


class Choice(nn.Module):
    """Named parts, of which one runs; None stands for no part at all. Order is as declared.

    `active` is the name of the part that runs, `main` until it is set. The others are not touched: they get no gradient.
    """

    def __init__(self, mixers: Mapping[str, nn.Module | None], main: str) -> None:
        super().__init__()
        if main not in mixers:
            raise ValueError(f"main = '{main}' is none of the mixers: {', '.join(mixers) or 'none'}")
        for name, part in mixers.items():
            if isinstance(part, Choice):
                raise ValueError(f"mixers: '{name}' is stochastic itself: a placement has one name for a layer")  # noqa: TRY004
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"mixers: '{name}' must be letters, digits, - and _: it is written in placements")
            if hasattr(nn.ModuleDict(), name):
                raise ValueError(f"mixers: '{name}' is a word of torch's own: call it otherwise")
        self.names = tuple(mixers)
        self.main = self.active = main
        self.mixers = nn.ModuleDict({name: part for name, part in mixers.items() if part is not None})

    @property
    def part(self) -> nn.Module | None:
        """The active part."""
        return self.get(self.active)

    def named(self) -> list[tuple[str, nn.Module | None]]:
        """All parts by name."""
        return [(name, self.get(name)) for name in self.names]

    def forward(self, x: Tensor) -> Tensor:
        """What the active part makes of x, of the same shape; zeros if there is none."""
        part = self.part
        return x.new_zeros(x.shape) if part is None else part(x)

    def get(self, name: str) -> nn.Module | None:
        """The part of a name; ValueError for a name that is none of the choices: None would be a choice too."""
        if name not in self.names:
            raise ValueError(f"'{name}' is none of the mixers: {', '.join(self.names)}")
        return self.mixers[name] if name in self.mixers else None  # noqa: SIM401 - a ModuleDict has no get
