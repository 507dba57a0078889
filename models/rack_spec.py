"""RackSpec, the description of a whole model: its fields are those of `models/spec/`; here it is checked, placed and built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from configs import Problems
from models.spec.parameters import is_matched
from models.spec.placement import Slot, parse_placement
from models.spec.rack_fields import RackFields
from models.spec.registries import EMBEDDINGS, HEADS, NORMS, PARTS
from models.spec.rules import check_part
from models.spec.size import parameter_problems

if TYPE_CHECKING:
    from models.rack.modules import Rack


class RackSpec(RackFields):
    """A whole model, checked: what it says can be built, and is said of something that is there."""

    @model_validator(mode="after")
    def _check_head(self) -> Self:
        problems = Problems()
        for name, registry, part in (("head", HEADS, self.head), ("embedding", EMBEDDINGS, self.embedding)):
            if part is None:
                problems.add((name,), f"a rack has one: leave {name} out for the usual")
            elif message := check_part(registry, part, self.d_model, self.max_length, self.vocab_size):
                problems.add((name,), message)
        problems.raise_if_any(type(self).__name__)
        ends = self.embedding, self.head
        for location, message in parameter_problems(
            self.stacks, ends, d_model=self.d_model, max_length=self.max_length, vocab_size=self.vocab_size
        ):
            problems.add(location, message)
        _check_reach(self, problems)
        problems.raise_if_any(type(self).__name__)
        _check_globs(self, problems)
        problems.raise_if_any(type(self).__name__)
        return self

    def slots(self) -> tuple[Slot, ...]:
        """What is still to be chosen, in the order of the data flow; empty for a rack without `stochastic` parts."""
        from models.assembly.place import searched

        return tuple(slot for _, _, slot in searched(self))

    def place(self, placement: str | Sequence[str]) -> RackSpec:
        """The model of a space that a placement (names, or a short text) describes.

        Raises:
            ConfigError: if the placement does not fit the slots.
        """
        from models.assembly.place import apply_placement

        return apply_placement(self, parse_placement(placement, self.slots()))

    def build(self, seed: int = 0) -> Rack:
        """The model, in training mode, on the current default device; the same seed gives the same weights."""
        from models.assembly.assemble import build

        return build(self, seed)


def _check_reach(rack: RackSpec, problems: Problems) -> None:
    """Refuse what components say that reaches nothing: parts without linears, a head whose linear is the embedding's."""
    blocks = [
        (("stacks", index, *each.location), each.block)
        for index, stack in enumerate(rack.stacks)
        for each in stack.blocks_with_paths()
    ]
    norms = {(*location, name): getattr(block, name) for location, block in blocks for name in PARTS if PARTS[name] is NORMS}
    for location, part in {**norms, ("norm",): rack.norm, ("embedding",): rack.embedding}.items():
        said = [name for name in ("init", "lora") if part is not None and getattr(part, name) is not None]
        for name in said if location != ("embedding",) else [each for each in said if each == "lora"]:
            problems.add((*location, name), "says nothing: there are no linears here; name a weight by parameters")
    if rack.tie_embeddings:
        tied = "the head's weight is the embedding's (tie_embeddings): say it of the embedding"
        unadapted = (
            "the head's weight is the embedding's (tie_embeddings), and has no adapter: what it learnt could not be merged"
        )
        if rack.head.lora is not None:
            problems.add(("head", "lora"), unadapted)
        for glob, said in rack.head.parameters.items():
            if is_matched("output.weight", glob):
                problems.add(("head", "parameters", glob), tied if said.lora is None else unadapted)


def _check_globs(rack: RackSpec, problems: Problems) -> None:
    """A rack is built only where globs reach over parts: a part by itself takes a millisecond, once."""
    from models.assembly.assemble import without_memory
    from models.assembly.parameter_globs import part_glob_problems
    from models.assembly.parameter_settings import ParameterSettings

    blocks = [
        (("stacks", index, *each.location), each.block)
        for index, stack in enumerate(rack.stacks)
        for each in stack.blocks_with_paths()
    ]
    components = (rack, rack.embedding, rack.head, rack.time, *rack.stacks, *(block for _, block in blocks))
    has_more = any(stack.progressive_lora for stack in rack.stacks)
    if has_more or any(fields is not None and (fields.parameters or fields.lora) for fields in components):
        ParameterSettings(without_memory(rack), rack).check(problems)
        return
    if rack.norm is not None:
        for place, message in part_glob_problems(NORMS, rack.norm, rack.d_model, rack.max_length):
            problems.add(("norm", *place), message)
    for location, block in blocks:
        for name in PARTS:
            part = getattr(block, name)
            for place, message in (
                part_glob_problems(PARTS[name], part, rack.d_model, rack.max_length) if part is not None else ()
            ):
                problems.add((*location, name, *place), message)
