"""The description of a stack: blocks in a row, said as one block, a pattern or a list."""

from typing import Any, Self

from pydantic import NonNegativeInt, PrivateAttr, model_validator

from configs import Problems
from models.spec.block import BlockSpec
from models.spec.parameters import LoraSpec
from models.spec.patterns import BlockWithPath, Layout, expand_blocks
from models.spec.precision import STORED_AS, Precision


class StackSpec(Layout):
    """Blocks in a row, said in one of three ways.

    - `block` and `n_blocks`: one block, repeated;
    - `pattern` of names in `blocks`, repeated and cut to `n_blocks` (once through, if not given); an entry may be a pattern
      itself, as a list or as `{pattern: [...], n_blocks: 4}`;
    - `blocks` as a list.

    `layers` overrides single blocks by index or slice of the stack: `{"0": {...}, "-2:": {mixer: {n_heads: 8}}}`, later ones win.

    `uid` is what a stack is known by wherever it comes to stand (null: its position). `precision` is how it computes: `half` and
    `bfloat16` by autocast, with float32 weights; `fp8` and `nvfp4` with weights rounded to that for every product. With `stored`
    the weights of its linears are kept in that format, and do not train. `qlora` is stored in NF4, and has adapters (of rank 16
    and alpha 32, unless `lora` says otherwise). `progressive_lora` are more adapters of its linears beside those of `lora`: what
    is around both is frozen, unless each that trains has `freeze_others: false`.
    """

    uid: NonNegativeInt | None = None
    precision: Precision = "full"
    stored: bool = False
    progressive_lora: LoraSpec | None = None
    _blocks: tuple[BlockWithPath, ...] = PrivateAttr()

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Take an index for what YAML reads it as, a number."""
        layers = raw.get("layers")
        if not isinstance(layers, dict):
            return raw
        named = {str(key): value for key, value in layers.items()}
        for key in layers:
            if not isinstance(key, str) and str(key) in layers:
                problems.add(("layers", str(key)), f"the key '{key}' is given twice, as a number and as text")
        return {**raw, "layers": named}

    @model_validator(mode="after")
    def _expand(self) -> Self:
        self._blocks = expand_blocks(self)
        # Mappings are equal in any order, but the order of overrides counts: what is kept is the blocks that came out.
        layers = {str(index): placed.block for index, placed in enumerate(self._blocks) if placed.location[0] == "layers"}
        object.__setattr__(self, "layers", layers)
        return self

    @model_validator(mode="after")
    def _check_storage(self) -> Self:
        if self.stored and self.precision not in STORED_AS:
            problems = Problems()
            problems.add(("stored",), f"precision '{self.precision}' is not stored: choose one of {', '.join(STORED_AS)}")
            problems.raise_if_any(type(self).__name__)
        if self.precision == "qlora":
            object.__setattr__(self, "stored", True)
        return self

    def own_fields(self) -> dict[str, Any]:
        """What is said of all blocks alike, in plain values: everything but which blocks there are."""
        return self.model_dump(mode="json", exclude=set(Layout.__annotations__))

    def expanded(self) -> tuple[BlockSpec, ...]:
        """The blocks, first block first, with patterns laid out and overrides applied."""
        return tuple(placed.block for placed in self._blocks)

    def blocks_with_paths(self) -> tuple[BlockWithPath, ...]:
        """The same blocks, each with the place in the spec that it comes from."""
        return self._blocks
