"""Lays out the blocks of a stack: repetition, nested patterns, overrides of single layers."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Annotated, Any

from pydantic import Field, PlainValidator, PositiveInt, SerializeAsAny, ValidationError

from configs import Problems, Spec
from configs.errors import Location, known_names
from configs.limits import MOST_BLOCKS, shortened
from configs.merge import merge
from models.spec.block import Blocks, BlockSpec
from models.spec.parameters import ParameterFields

NumberOfBlocks = Annotated[PositiveInt, Field(le=MOST_BLOCKS)]


def _pattern_item(value: Any) -> Any:
    if isinstance(value, str | PatternSpec):
        return value
    return PatternSpec.model_validate({"pattern": value} if isinstance(value, list | tuple) else value)


PatternItem = Annotated[Any, PlainValidator(_pattern_item)]


class PatternSpec(Spec):
    """A pattern inside a pattern: names in order, repeated and cut to `n_blocks` (once through, if not given)."""

    pattern: Annotated[tuple[PatternItem, ...], Field(min_length=1)]
    n_blocks: NumberOfBlocks | None = None


@dataclass(frozen=True)
class BlockWithPath:
    """A block of the laid-out stack and the place in the stack's spec where it is written."""

    block: BlockSpec
    location: Location = field(compare=False)


class Layout(ParameterFields):
    """The fields of a stack that say which blocks it has; `StackSpec` explains them."""

    n_blocks: NumberOfBlocks | None = None
    block: BlockSpec | None = None
    pattern: Annotated[tuple[PatternItem, ...], Field(min_length=1)] | None = None
    blocks: Blocks | None = None
    layers: dict[str, SerializeAsAny[dict[str, Any]]] = Field(default_factory=dict)


def _n_names(pattern: Sequence[Any], n_blocks: int | None) -> int:
    """How many names a pattern comes to, without laying it out: patterns in patterns multiply."""
    return (
        sum(1 if isinstance(item, str) else _n_names(item.pattern, item.n_blocks) for item in pattern)
        if n_blocks is None
        else n_blocks
    )


def _names(pattern: Sequence[Any], n_blocks: int | None) -> list[str]:
    once = [name for item in pattern for name in ([item] if isinstance(item, str) else _names(item.pattern, item.n_blocks))]
    return once if n_blocks is None else list(islice(cycle(once), n_blocks))


def expand_blocks(stack: Layout) -> tuple[BlockWithPath, ...]:
    """The blocks of a stack, first block first; ValidationError where the spec contradicts itself."""
    problems = Problems()
    placed = list(_lay_out(stack, problems))
    problems.raise_if_any("StackSpec")
    for key, override in stack.layers.items():
        indices = _indices(key, len(placed))
        if not indices:
            problems.add(("layers", key), f"'{key}' is no index or slice of {len(placed)} blocks", override)
        for index in indices:
            base = placed[index].block.to_dict()
            if "norm" in override:  # short for both, so neither is kept
                base = {name: value for name, value in base.items() if name not in ("mixer_norm", "mlp_norm")}
            try:
                block = BlockSpec.model_validate(merge(base, override))
            except ValidationError as error:
                problems.adopt(("layers", key), error)
                break
            placed[index] = BlockWithPath(block, ("layers", key))
    problems.raise_if_any("StackSpec")
    return tuple(placed)


def _lay_out(stack: Layout, problems: Problems) -> Iterator[BlockWithPath]:
    if stack.block is not None:
        if stack.pattern is not None or stack.blocks is not None:
            problems.add((), "give one of block, pattern with blocks, or a list of blocks")
        if stack.n_blocks is None:
            problems.add(("n_blocks",), "required beside block: how often the block is repeated")
        yield from [BlockWithPath(stack.block, ("block",))] * (stack.n_blocks or 0)
    elif isinstance(stack.blocks, tuple):
        if stack.pattern is not None:
            problems.add(("pattern",), "a pattern needs named blocks, but blocks is a list")
        if not stack.blocks or stack.n_blocks not in (None, len(stack.blocks)):
            problems.add(("blocks",), f"a list of {len(stack.blocks)} blocks, but n_blocks is {stack.n_blocks}")
        yield from (BlockWithPath(block, ("blocks", index)) for index, block in enumerate(stack.blocks))
    elif stack.blocks and stack.pattern:
        yield from _lay_out_pattern(stack.pattern, stack.blocks, stack.n_blocks, problems)
    else:
        problems.add((), "give block and n_blocks, or pattern and blocks, or a list of blocks")


def _lay_out_pattern(
    pattern: Sequence[Any], blocks: dict[str, BlockSpec], n_blocks: int | None, problems: Problems
) -> Iterator[BlockWithPath]:
    if (n_names := _n_names(pattern, None)) > MOST_BLOCKS:
        problems.add(("pattern",), f"comes to {n_names:,} blocks once through: a rack has at most {MOST_BLOCKS:,}")
        return
    names = _names(pattern, n_blocks)
    unknown = [name for name in dict.fromkeys(names) if name not in blocks]
    for name in unknown:
        problems.add(("pattern",), f"'{shortened(name)}' is not in blocks; {known_names(name, blocks)}", name)
    unused = [name for name in blocks if name not in _names(pattern, None)]
    for name in () if unknown else unused:
        problems.add(("blocks", name), "not used in the pattern")
    yield from (BlockWithPath(blocks[name], ("blocks", name)) for name in names if name not in unknown)


_INDEX = r"-?\d{1,9}"
_SLICE = re.compile(rf"({_INDEX})?:({_INDEX})?(?::({_INDEX}))?")


def _indices(key: str, n_blocks: int) -> list[int]:
    if re.fullmatch(_INDEX, key):
        return [int(key) % n_blocks] if -n_blocks <= int(key) < n_blocks else []
    match = _SLICE.fullmatch(key)
    if not match or (match[3] is not None and int(match[3]) == 0):
        return []
    return list(range(n_blocks))[slice(*(None if part is None else int(part) for part in match.groups()))]
