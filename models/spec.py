"""The description of a model: rack, stacks, blocks as specs. What a configuration file says about a model is said here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, PrivateAttr, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from configs import Problems
from configs.registry import Part
from models.build import build, without_memory
from models.checks import UNKNOWN_LENGTH, check_part, check_shares, check_uids, stack_uids
from models.globs import part_glob_problems
from models.layers import check_blocks, expand_layers, hand_down_norm
from models.parameters import IN_FULL, SILENT, LoraSpec, ParameterFields, is_matched
from models.patterns import PatternItem, Placed, expand_blocks
from models.placement import Slot, parse_placement
from models.precision import FORMATS, Precision
from models.rack import Rack
from models.registries import CHANNEL_MIXERS, EMBEDDINGS, HEADS, MIXERS, NORMS
from models.settings import PARTS, Settings
from models.space import placed, searched
from models.time_spec import TimeSpec


def _rms_norm() -> Part:
    return NORMS.part("rmsnorm")


class BlockSpec(ParameterFields):
    """norm + mixer + norm + channel mixer with residuals; each part may be null.

    `norm` is short for both norms. `share` names a group of blocks that are one block, used several times.
    """

    short_forms = ("norm",)
    mixer: MIXERS.field() = None  # type: ignore[valid-type]
    mlp: CHANNEL_MIXERS.field() = None  # type: ignore[valid-type]
    mixer_norm: NORMS.field() = Field(default_factory=_rms_norm)  # type: ignore[valid-type]
    mlp_norm: NORMS.field() = Field(default_factory=_rms_norm)  # type: ignore[valid-type]
    mixer_post_norm: NORMS.field() = None  # type: ignore[valid-type]
    mlp_post_norm: NORMS.field() = None  # type: ignore[valid-type]
    output_scale: float = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    share: str | None = None

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand `norm`."""
        if "norm" not in raw:
            return raw
        rest = {key: value for key, value in raw.items() if key != "norm"}
        try:
            norm = raw["norm"] and NORMS.part(raw["norm"])
        except ValidationError as error:
            problems.adopt(("norm",), error)
            return rest
        except PydanticCustomError as error:
            problems.add(("norm",), error.message())
            return rest
        return {"mixer_norm": norm, "mlp_norm": norm, **rest}


Blocks = Annotated[
    Annotated[dict[str, BlockSpec], Tag("<named>")] | Annotated[tuple[BlockSpec, ...], Tag("<listed>")],
    Discriminator(lambda value: "<listed>" if isinstance(value, list | tuple) else "<named>"),
]


class StackSpec(ParameterFields):
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

    silent: ClassVar[Mapping[str, Any]] = {
        **SILENT,
        "uid": None,
        "precision": "full",
        "stored": False,
        "progressive_lora": None,
    }
    n_blocks: PositiveInt | None = None
    block: BlockSpec | None = None
    pattern: Annotated[tuple[PatternItem, ...], Field(min_length=1)] | None = None
    blocks: Blocks | None = None
    layers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    uid: NonNegativeInt | None = None
    precision: Precision = "full"
    stored: bool = False
    progressive_lora: LoraSpec | None = None
    _placed: tuple[Placed, ...] = PrivateAttr()

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
        self._placed = expand_blocks(self, BlockSpec)
        # Mappings are equal in any order, but the order of overrides counts: what is kept is what came out, layer by layer.
        overridden = [index for index, placed in enumerate(self._placed) if placed.location[0] == "layers"]
        # A dump keeps the order of choices, which plain JSON values do not tell from that of other mappings; in full, because
        # a field that says nothing may be what an override has made of one that did.
        layers = {str(index): self._placed[index].block.model_dump(context=IN_FULL) for index in overridden}
        object.__setattr__(self, "layers", layers)
        return self

    @model_validator(mode="after")
    def _check_storage(self) -> Self:
        if self.stored and self.precision not in FORMATS:
            problems = Problems()
            problems.add(("stored",), f"precision '{self.precision}' is not stored: choose one of {', '.join(FORMATS)}")
            problems.raise_if_any(type(self).__name__)
        if self.precision == "qlora":
            object.__setattr__(self, "stored", True)
        return self

    def meaning(self, name: str) -> Any:
        """Of `layers`, the blocks: what is kept of them are dumps."""
        if name == "layers":
            return {index: self._placed[int(index)].block for index in self.layers}
        return super().meaning(name)

    def expanded(self) -> tuple[BlockSpec, ...]:
        """The blocks, first block first, with patterns laid out and overrides applied."""
        return tuple(placed.block for placed in self._placed)

    def placed(self) -> tuple[Placed, ...]:
        """The same blocks, each with the place in the spec that it comes from."""
        return self._placed


def _expand_init_std(raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
    std = raw.get("init_std")
    if std is not None and raw.get("init") is not None:
        problems.add(("init_std",), "give init or init_std, not both")
    rest = {key: value for key, value in raw.items() if key != "init_std"}
    return rest if std is None else {**rest, "init": {"kind": "normal", "std": std}}


class BackboneSpec(ParameterFields):
    """The stacks of a rack, without embedding and head: what is compared between architectures.

    `layers: [mh-attention, swiglu, ...]` is short for one stack of the MAD suite's layers, each a pre-norm residual unit.
    `norm` is the kind of every norm that a block does not choose itself. `init_std: 0.02` is short for `init: {kind: normal, std:
    0.02}`: all linears start from that distribution.
    """

    short_forms = ("layers", "init_std")
    d_model: PositiveInt
    norm: NORMS.field() = Field(default_factory=_rms_norm)  # type: ignore[valid-type]
    stacks: Annotated[tuple[StackSpec, ...], Field(min_length=1)]

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand short forms; check blocks here too, so that parts that do not fit are reported beside misspelt keys."""
        raw = hand_down_norm(expand_layers(_expand_init_std(raw, problems), problems))
        check_blocks(raw, problems)
        return raw

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        max_length = getattr(self, "max_length", UNKNOWN_LENGTH)
        messages = {
            ("stacks", index, *placed.location, name): check_part(registry, part, self.d_model, max_length)
            for index, stack in enumerate(self.stacks)
            for placed in stack.placed()
            for name, registry, part in (("mixer", MIXERS, placed.block.mixer), ("mlp", CHANNEL_MIXERS, placed.block.mlp))
        }
        problems = Problems()
        for location, message in messages.items():
            if message:
                problems.add(location, message)
        check_uids(problems, stack_uids(self), getattr(self, "next_uid", None))
        # As text: the order of globs counts.
        around = [json.dumps({**stack.own_fields(), "uid": None}) for stack in self.stacks]
        shares = [
            (("stacks", index, *placed.location), placed.block, around[index])
            for index, stack in enumerate(self.stacks)
            for placed in stack.placed()
        ]
        check_shares(problems, shares)
        problems.raise_if_any(type(self).__name__)
        return self


class RackSpec(BackboneSpec):
    """A whole model. `max_length` is needed by parts whose parameters depend on it (hyena, the autoencoder head).

    `residual_dtype` is the type of the residual stream between the parts; null is that of the weights, also under autocast.
    `time` is what tells it how far a sample is noised. `next_uid` is that of the next stack to come (null: one above the highest
    that is there), so that a stack that has gone is not taken for another one.
    """

    silent: ClassVar[Mapping[str, Any]] = {**SILENT, "time": None, "next_uid": None}
    vocab_size: PositiveInt
    max_length: PositiveInt | None = None
    tie_embeddings: bool = False
    residual_dtype: Literal["bfloat16"] | None = None
    embedding: EMBEDDINGS.field() = Field(default_factory=lambda: EMBEDDINGS.part("token"))  # type: ignore[valid-type]
    head: HEADS.field() = Field(default_factory=lambda: HEADS.part("language_model"))  # type: ignore[valid-type]
    time: TimeSpec | None = None
    next_uid: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _check_head(self) -> Self:
        problems = Problems()
        for name, registry, part in (("head", HEADS, self.head), ("embedding", EMBEDDINGS, self.embedding)):
            if message := check_part(registry, part, self.d_model, self.max_length):
                problems.add((name,), message)
        _check_reach(self, problems)
        problems.raise_if_any(type(self).__name__)
        _check_globs(self, problems)
        problems.raise_if_any(type(self).__name__)
        return self

    def slots(self) -> tuple[Slot, ...]:
        """What is still to be chosen, in the order of the data flow; empty for a rack without `stochastic` parts."""
        return tuple(slot for _, _, slot in searched(self))

    def place(self, placement: str | Sequence[str]) -> RackSpec:
        """The model of a space that a placement (names, or a short text) describes.

        Raises:
            ConfigError: if the placement does not fit the slots.
        """
        return placed(self, parse_placement(placement, self.slots()))

    def build(self, seed: int = 0) -> Rack:
        """The model, in training mode, on the current default device; the same seed gives the same weights."""
        return build(self, seed)


def _check_reach(rack: RackSpec, problems: Problems) -> None:
    """Refuse what components say that reaches nothing: parts without linears, a head whose linear is the embedding's."""
    placed = [
        (("stacks", index, *each.location), each.block) for index, stack in enumerate(rack.stacks) for each in stack.placed()
    ]
    norms = {(*location, name): getattr(block, name) for location, block in placed for name in PARTS if PARTS[name] is NORMS}
    for location, part in {**norms, ("norm",): rack.norm, ("embedding",): rack.embedding}.items():
        said = [name for name in ("init", "lora") if part is not None and getattr(part, name) is not None]
        for name in said if location != ("embedding",) else [each for each in said if each == "lora"]:
            problems.add((*location, name), "says nothing: there are no linears here; name a weight by parameters")
    if rack.tie_embeddings:
        tied = "the head's weight is the embedding's (tie_embeddings): say it of the embedding"
        if rack.head.lora is not None:
            problems.add(("head", "lora"), tied)
        for glob in rack.head.parameters:
            if is_matched("output.weight", glob):
                problems.add(("head", "parameters", glob), tied)


def _check_globs(rack: RackSpec, problems: Problems) -> None:
    """A rack is built only where globs reach over parts: a part by itself takes a millisecond, once."""
    placed = [
        (("stacks", index, *each.location), each.block) for index, stack in enumerate(rack.stacks) for each in stack.placed()
    ]
    components = (rack, rack.embedding, rack.head, rack.time, *rack.stacks, *(block for _, block in placed))
    has_more = any(stack.progressive_lora for stack in rack.stacks)
    if has_more or any(fields is not None and (fields.parameters or fields.lora) for fields in components):
        Settings(without_memory(rack), rack).check(problems)
        return
    if rack.norm is not None:
        for place, message in part_glob_problems(NORMS, rack.norm, rack.d_model, rack.max_length):
            problems.add(("norm", *place), message)
    for location, block in placed:
        for name in PARTS:
            part = getattr(block, name)
            for place, message in (
                part_glob_problems(PARTS[name], part, rack.d_model, rack.max_length) if part is not None else ()
            ):
                problems.add((*location, name, *place), message)
