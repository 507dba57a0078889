"""How large a whole rack is, counted before anything is allocated, against the limits of what is built."""

from collections.abc import Iterator, Sequence

from configs.errors import Location
from configs.limits import MOST_BLOCKS, MOST_PARAMETERS, MOST_PARTS
from configs.registry import Part
from models.spec.registries import CHANNEL_MIXERS, EMBEDDINGS, HEADS, MIXERS
from models.spec.rules import choices, n_parameters
from models.spec.stack import StackSpec


def stack_problems(stacks: Sequence[StackSpec]) -> Iterator[tuple[Location, str]]:
    """Where there are more blocks, or more parts in them, than a rack may have."""
    n_blocks = sum(len(stack.expanded()) for stack in stacks)
    if n_blocks > MOST_BLOCKS:
        yield ("stacks",), f"{n_blocks:,} blocks in all: a rack has at most {MOST_BLOCKS:,}"
        return
    n_parts = sum(
        max(len(choices(registry, part)), 1)
        for stack in stacks
        for block in stack.expanded()
        for registry, part in ((MIXERS, block.mixer), (CHANNEL_MIXERS, block.mlp))
        if part is not None
    )
    if n_parts > MOST_PARTS:
        yield ("stacks",), f"{n_parts:,} mixers and channel mixers, every choice counted: a rack has at most {MOST_PARTS:,}"


def parameter_problems(
    stacks: Sequence[StackSpec], ends: Sequence[Part | None] = (), *, d_model: int, max_length: int | None, vocab_size: int = 1
) -> Iterator[tuple[Location, str]]:
    """Where most of the parameters are, if there are more than a rack may have; `ends` are embedding and head, if known."""
    counts: dict[Location, int] = {
        (name,): n_parameters(registry, part, d_model, max_length, vocab_size)
        for (name, registry), part in zip((("embedding", EMBEDDINGS), ("head", HEADS)), ends, strict=False)
    }
    for index, stack in enumerate(stacks):
        for placed in stack.blocks_with_paths():
            for name, registry, part in (("mixer", MIXERS, placed.block.mixer), ("mlp", CHANNEL_MIXERS, placed.block.mlp)):
                place = ("stacks", index, *placed.location, name)
                counts[place] = counts.get(place, 0) + n_parameters(registry, part, d_model, max_length)
    total = sum(counts.values())
    if total > MOST_PARAMETERS:
        place = max(counts, key=lambda each: counts[each])
        sizes = f"d_model = {d_model}" + (f", vocab_size = {vocab_size}" if place in (("embedding",), ("head",)) else "")
        most = f"a rack has at most {MOST_PARAMETERS:,}"
        yield place, f"{counts[place]:,} parameters at {sizes}, of {total:,} in all: {most}"
