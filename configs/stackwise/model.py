"""The section `model` of the guide's configuration: sizes, attention types and presets, the architecture."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.errors import Problems
from configs.growth import Problem
from configs.limits import LONGEST, MOST_BLOCKS, WIDEST
from configs.load import validate
from configs.spec import Spec
from configs.stackwise.base import BaseConfig

AttentionType = Literal["mha", "gqa", "mla", "kernel"]
AttentionMode = Literal["bidirectional", "causal"]
KernelType = Literal["favor", "rff_gaussian", "rff_laplacian", "elu"]
Preset = Literal["bert_style", "gpt_style", "efficient_gqa", "mla_attention", "kernel_attention"]


PRESETS: dict[str, tuple[AttentionType, AttentionMode]] = {
    "bert_style": ("mha", "bidirectional"),
    "gpt_style": ("mha", "causal"),
    "efficient_gqa": ("gqa", "bidirectional"),
    "mla_attention": ("mla", "bidirectional"),
    "kernel_attention": ("kernel", "bidirectional"),
}
"""Type and mode of attention by one name."""


class BlockOptions(Spec):
    """A block of attention and SwiGLU by what the guide calls its options.

    `attention_type` None is gqa where there are fewer key-value heads than heads, otherwise mha; mla and kernel have none to
    share, whatever `n_kv_heads` says. A preset names a type and a mode in one. `kernel_*` are options of the type kernel,
    `mla_*` of the type mla: ranks of the latent vectors of queries and of keys and values, and channels that carry positions.
    With `freeze_up_proj` the up projection of the SwiGLU stays as it starts. Sizes left at None are derived.
    """

    d_model: PositiveInt
    d_ff: PositiveInt | None = None
    n_heads: PositiveInt | None = None
    n_kv_heads: PositiveInt | None = None
    attention_type: AttentionType | None = None
    attention_mode: AttentionMode | None = None
    attention_preset: Preset | None = None
    kernel_type: KernelType | None = None
    kernel_dim: PositiveInt | None = None
    mla_rq: PositiveInt | None = None
    mla_rkv: PositiveInt | None = None
    mla_rope_dim: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    freeze_up_proj: bool = False
    use_rope: bool = True
    rope_theta: PositiveFloat = 10000.0
    norm: Literal["rmsnorm", "layernorm"] = "layernorm"

    def problems(self) -> list[Problem]:
        """Heads that do not divide what they share out, and options of another type than the one that is said."""
        found = self._size_misfits()
        said = PRESETS[self.attention_preset][0] if self.attention_preset else self.attention_type
        for name in ("kernel_type", "kernel_dim", "mla_rq", "mla_rkv", "mla_rope_dim"):
            type_of = name.partition("_")[0]
            if getattr(self, name) is not None and said != type_of:
                found.append(((name,), f"is of attention_type {type_of}, not of {said or 'mha'}"))
        for index, name in enumerate(("attention_type", "attention_mode")):
            ours = getattr(self, name)
            if self.attention_preset and ours is not None and ours != (theirs := PRESETS[self.attention_preset][index]):
                found.append(((name,), f"attention_preset {self.attention_preset} says {theirs}: give one of them"))
        if said == "mla" and not self.use_rope:
            found.append((("use_rope",), "mla has channels for positions: leave it true, or choose another attention_type"))
        return found

    def _size_misfits(self) -> list[Problem]:
        found: list[Problem] = []
        if self.n_heads is None and self.use_rope and self.d_model % 2:
            text = f"{self.d_model} cannot be shared out among heads of pairs of channels, which use_rope turns: make it even"
            found.append((("d_model",), text))
        if self.mla_rope_dim is not None and self.mla_rope_dim % 2:
            found.append((("mla_rope_dim",), f"{self.mla_rope_dim} must be even: pairs of channels are turned"))
        if self.n_heads is not None and self.d_model % self.n_heads:
            found.append((("n_heads",), f"d_model = {self.d_model} must be divisible by n_heads = {self.n_heads}"))
        elif self.n_heads is not None and self.use_rope and self.d_model // self.n_heads % 2:
            text = f"a head has d_model / n_heads = {self.d_model // self.n_heads} channels; use_rope turns pairs: make it even"
            found.append((("n_heads",), text))
        if self.n_heads is not None and self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            found.append((("n_kv_heads",), f"n_heads = {self.n_heads} must be divisible by n_kv_heads = {self.n_kv_heads}"))
        return found

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model_config.get("frozen"):
            problems = Problems()
            for location, message in self.problems():
                problems.add(location, message)
            problems.raise_if_any(type(self).__name__)
        return self


class ArchitectureConfig(BaseConfig):
    """How many stacks there are, and how many blocks in each."""

    n_stacks: Annotated[PositiveInt, Field(le=MOST_BLOCKS)] = 2
    blocks_per_stack: Annotated[PositiveInt, Field(le=MOST_BLOCKS)] = 4

    @property
    def n_blocks(self) -> int:
        """Blocks of the whole rack."""
        return self.n_stacks * self.blocks_per_stack

    def problems(self) -> list[Problem]:
        """More blocks than a rack has."""
        if self.n_blocks <= MOST_BLOCKS:
            return []
        text = (
            f"{self.n_stacks} stacks of {self.blocks_per_stack} are {self.n_blocks:,} blocks: a rack has at most {MOST_BLOCKS:,}"
        )
        return [(("blocks_per_stack",), text)]


class ModelConfig(BlockOptions, BaseConfig):
    """The rack: its sizes, and what each of its blocks is (see `BlockOptions`). `max_seq_len` None is without a limit."""

    d_model: Annotated[PositiveInt, Field(le=WIDEST)] = 512
    vocab_size: Annotated[PositiveInt, Field(le=LONGEST)] = 50000
    tie_embeddings: bool = True
    max_seq_len: Annotated[PositiveInt, Field(le=LONGEST)] | None = None
    architecture: ArchitectureConfig = Field(default_factory=ArchitectureConfig)

    def block_options(self) -> BlockOptions:
        """What of it is said of a block."""
        return validate(BlockOptions, {name: getattr(self, name) for name in BlockOptions.model_fields}, "model")
