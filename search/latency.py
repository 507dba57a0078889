"""The measured latency table: milliseconds of everything that a rack of a space may consist of, on one machine."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import NonNegativeFloat, PositiveInt

from configs import ConfigError, Registry, Spec
from configs.load import validate
from configs.registry import Part
from models import RackSpec
from models.registries import CHANNEL_MIXERS, HEADS, MIXERS, NORMS
from models.space import STOCHASTIC
from models.spec import BlockSpec
from search.results import write_text

Mode = Literal["prefill", "decode"]
EMBEDDING = "embedding"


class LatencyTable(Spec):
    """Milliseconds by part, as measured.

    `prefill` is the forward pass of `batch_size` sequences of `seq_len`; `decode` is one position of each after `seq_len` others.
    Parts of equal settings take equally long wherever they stand, so there is one time for all of them, in whichever space of
    these sizes. A choice takes what the part and its norms take: what a layer without it saves.
    """

    hardware: str
    torch_version: str
    device: str
    precision: Literal["fp32", "bf16"]
    mode: Mode
    batch_size: PositiveInt
    seq_len: PositiveInt
    d_model: PositiveInt
    vocab_size: PositiveInt
    max_length: PositiveInt | None
    milliseconds: dict[str, NonNegativeFloat]

    @classmethod
    def load(cls, path: Path) -> Self:
        """The table in a file; ConfigError if there is none."""
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: no latency table can be read there ({error})") from None
        return validate(cls, tree, str(path))

    def save(self, path: Path) -> None:
        """Write the table, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def check(self, space: RackSpec) -> None:
        """ConfigError if the table is of other sizes than the space, or has no time for one of its parts."""
        remedy = "measure this space with python -m search profile"
        is_sized_by_length = any(part.is_sized_by_length for part in parts_of(space))
        for name in ("d_model", "vocab_size", *(["max_length"] if is_sized_by_length else [])):
            ours, theirs = getattr(self, name), getattr(space, name)
            if ours != theirs:
                raise ConfigError(f"latency table: measured at {name} {ours}, but the space has {theirs}; {remedy}")
        for part in parts_of(space):
            if part.key not in self.milliseconds:
                raise ConfigError(f"latency table: no time for the {part.key}; {remedy}")

    def of_space(self, space: RackSpec, context: int) -> tuple[float, list[dict[str, float]]]:
        """What is outside of the slots, and slot by slot each name's; ConfigError as in `check`, or for another length."""
        self.check(space)
        if context != self.seq_len:
            raise ConfigError(
                f"latency table: {self.mode} was measured at seq_len {self.seq_len}, but the budget's context is {context}"
            )
        outside = self.milliseconds[EMBEDDING] + self._time(RackPart(HEADS, space.head))
        slots = []
        for half in (half for block in _blocks(space) for half in _halves(block)):
            if isinstance(half.part, Part) and half.part.kind == STOCHASTIC:
                slots.append({name: self._half(half._replace(part=part)) for name, part in choices(half.part).items()})
            else:
                outside += self._half(half)
        return outside, slots

    def _half(self, half: _Half) -> float:
        if half.part is None:
            return 0.0
        return self._time(RackPart(half.registry, half.part)) + sum(self._time(RackPart(NORMS, norm)) for norm in half.norms)

    def _time(self, part: RackPart) -> float:
        return self.milliseconds[part.key]


class RackPart(NamedTuple):
    """A part of a rack, and the registry that builds it."""

    registry: Registry
    part: Part

    @property
    def key(self) -> str:
        """What its time depends on: its settings, but not its learning rate."""
        return f"{self.registry.noun} {self.part.kind} {json.dumps(self.part.options(), sort_keys=True)}"

    @property
    def is_sized_by_length(self) -> bool:
        """Whether it is built for the longest sequence of the rack: then its time is that of this length."""
        return "max_length" in inspect.signature(self.registry[self.part.kind]).parameters


class _Half(NamedTuple):
    registry: Registry
    part: Part | None
    norms: list[Part]


def parts_of(space: RackSpec) -> list[RackPart]:
    """Everything that a rack of the space may consist of, but for the embedding: every choice; equal parts once."""
    found = [RackPart(HEADS, space.head)]
    for half in (half for block in _blocks(space) for half in _halves(block)):
        if half.part is not None:
            inner = list(choices(half.part).values()) if half.part.kind == STOCHASTIC else [half.part]
            found += [RackPart(half.registry, part) for part in inner if part is not None]
            found += [RackPart(NORMS, norm) for norm in half.norms]
    return list({part.key: part for part in found}.values())


def choices(part: Part) -> dict[str, Part | None]:
    """The parts that a stochastic one may be."""
    mixers: dict[str, Part | None] = part.options()["mixers"]
    return mixers


def _blocks(space: RackSpec) -> Iterator[BlockSpec]:
    return (block for stack in space.stacks for block in stack.expanded())


def _halves(block: BlockSpec) -> Iterator[_Half]:
    rows: Any = (
        (MIXERS, block.mixer, (block.mixer_norm, block.mixer_post_norm)),
        (CHANNEL_MIXERS, block.mlp, (block.mlp_norm, block.mlp_post_norm)),
    )
    for registry, part, norms in rows:
        yield _Half(registry, part, [norm for norm in norms if norm is not None])
