"""The guide's helper functions: create_simple_rack, create_stack_from_config and the like."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from configs import ConfigError, GrowthSpec, ModelConfig, Spec, StackWiseConfig
from configs.load import validate
from configs.stackwise import BlockOptions
from configs.stackwise.model import AttentionMode, AttentionType
from models.architecture.block_options import block_of, validated
from models.architecture.modules import NORM, Rack, Stack, alone
from models.growth.new_stack import new_stack
from models.rack_spec import RackSpec
from models.spec.precision import Precision
from models.spec.stack import StackSpec

AnyConfig = StackWiseConfig | ModelConfig | Mapping[str, Any]
"""A configuration, its section `model`, or either in plain values."""


class StackTraining(Spec):
    """How a stack trains where it is not as the rest: times the learning rate, and by its own weight decay."""

    lr_scale: NonNegativeFloat = 1.0
    weight_decay: NonNegativeFloat | None = None


class StackEntry(Spec):
    """A stack in plain values; `stack_id` is what it is known by, wherever it stands."""

    stack_id: NonNegativeInt
    n_blocks: PositiveInt
    block_spec: BlockOptions
    freeze_blocks: bool = False
    precision: Precision = "full"
    training: StackTraining = Field(default_factory=StackTraining)

    def stack(self) -> StackSpec:
        """The stack's spec, as it is where it is not frozen."""
        tree = {"n_blocks": self.n_blocks, "block": block_of(self.block_spec), "uid": self.stack_id, "precision": self.precision}
        return StackSpec.model_validate({**tree, **self.training.to_dict()})


def create_block_spec(  # noqa: PLR0917 - the guide's signature
    d_model: int,
    d_ff: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    attention_type: AttentionType | None = None,
    attention_mode: AttentionMode | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A block in plain values, all that is derived filled in; other options are those of `BlockOptions` too."""
    sizes = {"d_model": d_model, "d_ff": d_ff, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    attention = {"attention_type": attention_type, "attention_mode": attention_mode}
    return validated({**sizes, **attention, **options}, "create_block_spec").to_dict()


def create_stack_from_spec(
    stack_id: int,
    n_blocks: int,
    block_spec: Mapping[str, Any],
    freeze_blocks: bool = False,  # noqa: FBT001, FBT002 - the guide's signature
    *,
    seed: int = 0,
) -> Stack:
    """Blocks of one spec, each with weights of its own; another `stack_id` gives others."""
    tree = {"stack_id": stack_id, "n_blocks": n_blocks, "block_spec": block_spec, "freeze_blocks": freeze_blocks}
    entry = validate(StackEntry, tree, "create_stack_from_spec")
    spec = alone(entry.stack(), entry.block_spec.d_model, "create_stack_from_spec")
    return _frozen(Rack.of(spec.build(seed + stack_id), spec), [entry]).stacks[0]  # type: ignore[return-value]


def create_simple_rack(  # noqa: PLR0917 - the guide's signature
    n_stacks: int,
    blocks_per_stack: int,
    d_model: int,
    d_ff: int | None = None,
    n_heads: int | None = None,
    vocab_size: int = 50000,
    *,
    tie_embeddings: bool = True,
    max_seq_len: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Rack:
    """A rack of equal stacks of equal blocks; other options are those of `BlockOptions`."""
    block = create_block_spec(d_model, d_ff, n_heads, **options)
    entries = [{"stack_id": index, "n_blocks": blocks_per_stack, "block_spec": block} for index in range(n_stacks)]
    return create_rack_from_specs(vocab_size, d_model, entries, tie_embeddings, max_seq_len=max_seq_len, seed=seed)


def create_rack_from_specs(
    vocab_size: int,
    d_model: int,
    stack_specs: Sequence[Mapping[str, Any]],
    tie_embeddings: bool = True,  # noqa: FBT001, FBT002 - the guide's signature
    *,
    max_seq_len: int | None = None,
    seed: int = 0,
) -> Rack:
    """A rack of stacks in plain values (see `StackEntry`), in the order of the data flow."""
    entries = [validate(StackEntry, entry, f"stack_specs[{index}]") for index, entry in enumerate(stack_specs)]
    for entry in entries:
        if entry.block_spec.d_model != d_model:
            text = f"block_spec.d_model = {entry.block_spec.d_model}, but the rack has d_model = {d_model}"
            raise ConfigError(f"stack {entry.stack_id}: {text}")
    ends = {"vocab_size": vocab_size, "d_model": d_model, "tie_embeddings": tie_embeddings, "max_length": max_seq_len}
    tree = {**ends, "norm": NORM, "stacks": [entry.stack().to_dict() for entry in entries]}
    spec = validate(RackSpec, tree, "create_rack_from_specs")
    return _frozen(Rack.of(spec.build(seed), spec), entries)


def create_stack_from_config(
    stack_id: int,
    n_blocks: int | None,
    config: AnyConfig,
    *,
    seed: int | None = None,
) -> Stack:
    """A stack of the blocks that a configuration describes, in the precision and with the adapters that new stacks have.

    `n_blocks` None is its `blocks_per_stack`.
    """
    model, growth, model_seed = _parts_of(config)
    stack = _new(stack_spec(model, stack_id, n_blocks), growth, stack_id)
    spec = alone(stack, model.d_model, "create_stack_from_config")
    return Rack.of(spec.build((model_seed if seed is None else seed) + stack_id), spec).stacks[0]  # type: ignore[return-value]


def create_rack_from_config(config: AnyConfig, *, seed: int | None = None) -> Rack:
    """The rack of a configuration, its stacks as above; the seed is the training's."""
    model, growth, model_seed = _parts_of(config)
    spec = rack_spec(model, [_new(stack_spec(model, uid), growth, uid) for uid in range(model.architecture.n_stacks)])
    return Rack.of(spec.build(model_seed if seed is None else seed), spec)


def stack_spec(model: ModelConfig, uid: int, n_blocks: int | None = None) -> StackSpec:
    """A stack of the blocks that a configuration describes; `n_blocks` None is its `blocks_per_stack`."""
    n_blocks = model.architecture.blocks_per_stack if n_blocks is None else n_blocks
    return StackSpec(n_blocks=n_blocks, block=block_of(model.block_options()), uid=uid)


def rack_spec(model: ModelConfig, stacks: Sequence[StackSpec]) -> RackSpec:
    """The rack of these stacks with the ends that a configuration describes."""
    ends = {"vocab_size": model.vocab_size, "d_model": model.d_model, "tie_embeddings": model.tie_embeddings, "norm": model.norm}
    tree = {**ends, "max_length": model.max_seq_len, "stacks": [stack.to_dict() for stack in stacks]}
    return validate(RackSpec, tree, "model")


def _frozen(rack: Rack, entries: Sequence[StackEntry]) -> Rack:
    for stack, entry in zip(rack.stacks, entries, strict=True):
        if entry.freeze_blocks:
            stack.freeze()  # type: ignore[operator]
    return rack


def _new(stack: StackSpec, growth: GrowthSpec | None, index: int) -> StackSpec:
    return stack if growth is None else new_stack(stack, growth, index)


def _parts_of(config: AnyConfig) -> tuple[ModelConfig, GrowthSpec | None, int]:
    """The section `model`, checked, how stacks are added, if anything is said of that, and the seed."""
    if isinstance(config, Mapping):
        config = StackWiseConfig.from_dict(config) if "model" in config else ModelConfig.from_dict(config)
    if isinstance(config, ModelConfig):
        config.validate()
        return config, None, 0
    config.validate_sections()
    return config.model, config.training.progressive.growth(), config.training.seed
