"""Supernet: one set of weights for every placement of a space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from torch import Tensor, nn

from configs import ConfigError
from models.assembly.assemble import filled, without_numbers
from models.assembly.place import keep_choices
from models.rack.choice import Choice
from models.rack.modules import Rack
from models.rack_spec import RackSpec
from models.spec.placement import Placement, main_placement, parse_placement


class Supernet(nn.Module):
    """A space with weights; call it like a rack. One placement is active at a time, the main one in evaluation unless told.

    Parameters of parts that are not active get no gradient (`None`, not zero), so that an optimizer leaves them alone.
    """

    def __init__(self, space: RackSpec, seed: int = 0, *, rack: Rack | None = None) -> None:
        """`rack` is one of the space that has its weights already; without, one is built from the seed."""
        super().__init__()
        self.space, self.slots = space, space.slots()
        self.rack = space.build(seed) if rack is None else rack
        found = {path: part for path, part in self.rack.named_modules() if isinstance(part, Choice)}
        self._paths, self.choices = list(found), list(found.values())
        self.main = main_placement(self.slots)

    @property
    def active(self) -> Placement:
        """The placement that `forward` runs."""
        return tuple(choice.active for choice in self.choices)

    def activate(self, placement: str | Sequence[str]) -> None:
        """Make a placement (names, or a short text) the active one; ConfigError if it does not fit."""
        for choice, name in zip(self.choices, parse_placement(placement, self.slots), strict=True):
            choice.active = name

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Set the mode of every part; evaluation starts from the main placement."""
        super().train(mode)
        if not mode:
            self.activate(self.main)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, time] -> logits [batch, time, vocab_size] of the active placement."""
        return self.rack(tokens)

    def extract(self, placement: str | Sequence[str]) -> Rack:
        """A plain rack with a copy of the placement's weights: the same outputs, to the last bit."""
        chosen = parse_placement(placement, self.slots)
        weights = self.rack.state_dict()
        for path, choice, name in zip(self._paths, self.choices, chosen, strict=True):
            part = choice.mixers[name] if name in choice.mixers else nn.Module()
            weights |= {f"{path}.{key}": tensor for key, tensor in part.state_dict().items()}
        return self._filled(self.space.place(chosen), weights)

    def thin(self, placements: Iterable[str | Sequence[str]]) -> Supernet:
        """A supernet of the union of the placements' parts, with a copy of their weights.

        Slots stay slots, also those with one name left; where the main choice goes, the first name left is the main one.
        """
        kept = [parse_placement(each, self.slots) for each in placements]
        if not kept:
            raise ConfigError("a supernet is thinned to the parts of some placements, but none is given")
        space = keep_choices(self.space, kept)
        return Supernet(space, rack=self._filled(space, self.rack.state_dict())).train(self.training)

    def _filled(self, spec: RackSpec, weights: dict[str, Tensor]) -> Rack:
        """The rack of a spec with copies of these weights, of the device, type and mode of this supernet's."""
        rack = filled(without_numbers(spec), lambda name: weights[name].clone())
        return rack.to(self.rack.embedding.weight).train(self.training)
