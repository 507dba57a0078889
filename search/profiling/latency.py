"""The measured latency table: milliseconds of everything that a rack of a space may consist of, on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import NonNegativeFloat, PositiveInt

from configs import ConfigError, Spec
from configs.load import validate
from configs.records import DamagedError, read_json, write_json
from models import RackSpec

if TYPE_CHECKING:
    from search.profiling.rack_parts import RackPart

LatencyMode = Literal["prefill", "decode"]
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
    mode: LatencyMode
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
            tree = read_json(path)
        except DamagedError as error:
            raise DamagedError(f"{error}; python -m search profile measures a latency table") from None
        return validate(cls, tree, str(path))

    def save(self, path: Path) -> None:
        """Write the table, whole or not at all."""
        write_json(path, self.to_dict())

    def check(self, space: RackSpec) -> None:
        """ConfigError if the table is of other sizes than the space, or has no time for one of its parts."""
        from search.profiling.rack_parts import parts_of

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
        from search.profiling.rack_parts import head_of, sublayers_of

        self.check(space)
        if context != self.seq_len:
            raise ConfigError(
                f"latency table: {self.mode} was measured at seq_len {self.seq_len}, but the budget's context is {context}"
            )
        outside = self.milliseconds[EMBEDDING] + self._time(head_of(space))
        slots = []
        for sublayer in sublayers_of(space):
            if sublayer.choices is None:
                outside += self._half(sublayer.part, sublayer.norms)
            else:
                slots.append({name: self._half(part, sublayer.norms) for name, part in sublayer.choices.items()})
        return outside, slots

    def _half(self, part: RackPart | None, norms: Sequence[RackPart]) -> float:
        return 0.0 if part is None else self._time(part) + sum(map(self._time, norms))

    def _time(self, part: RackPart) -> float:
        return self.milliseconds[part.key]
