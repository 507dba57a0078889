"""Cuts a rack into units: blocks, stacks, or the whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from models import Rack

UnitKind = Literal["block", "stack", "rack"]


@dataclass(frozen=True)
class Unit:
    """Parts of a rack that learn from one loss; `tail` is what of the rack's last stack comes after them."""

    name: str
    parts: tuple[nn.Module, ...]
    tail: tuple[nn.Module, ...]

    def __call__(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[batch, time, d_model] -> same; `attention_mask` [batch, time] is False at pads."""
        return through(self.parts, x, attention_mask)


def units_of(rack: Rack, kind: UnitKind) -> tuple[Unit, ...]:
    """The units in the order of the data flow, by the names that their parts have in the rack."""
    stacks = tuple(rack.stacks)
    if kind == "rack":
        return (Unit("stacks", stacks, ()),)
    if kind == "stack":
        tails = ((stacks[-1],),) * (len(stacks) - 1) + ((),)
        return tuple(Unit(f"stacks.{i}", (stacks[i],), tail) for i, tail in enumerate(tails))
    units = []
    for i, stack in enumerate(stacks):
        blocks: tuple[nn.Module, ...] = tuple(stack.blocks)  # type: ignore[arg-type]
        for j, block in enumerate(blocks):
            tail = blocks[j + 1 :] if i == len(stacks) - 1 else (stacks[-1],)
            units.append(Unit(f"stacks.{i}.blocks.{j}", (block,), tail))
    return tuple(units)


def through(parts: Iterable[nn.Module], x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Stacks or blocks in a row: [batch, time, d_model] -> same."""
    for part in parts:
        x = part(x) if attention_mask is None else part(x, attention_mask)
    return x
