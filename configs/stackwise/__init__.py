"""The configuration of the guide: mutable, in three sections, for scripts and notebooks; what runs are the specs it comes to.

>>> config = StackWiseConfig.from_dict({"model": {"d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "d_ff": 14336,
...                                               "architecture": {"n_stacks": 2, "blocks_per_stack": 4}}})
>>> config.validate()
>>> config.model.architecture.n_blocks
8

Whatever is not said has a default, and each value may be changed until it is used:

>>> config = StackWiseConfig()
>>> config.training.training_architecture = "blockwise"
>>> config.training.progressive.trunk_strategy = "qlora"
>>> config.training.progressive.qlora_configs = {0: {"rank": 8, "alpha": 16}, 1: {"rank": 16, "alpha": 32}}
>>> config.to_dict()["training"]["progressive"]["qlora_configs"]["0"]
{'rank': 8, 'alpha': 16.0}
>>> config.training.progressive.trunk_stratgy = "frozen"
Traceback (most recent call last):
configs.errors.ConfigError: ProgressiveConfig: unknown key 'trunk_stratgy'; did you mean 'trunk_strategy'? Known: ...
"""

from collections.abc import Iterator

from pydantic import Field, NonNegativeInt, PositiveInt

from configs.growth import Problem
from configs.stackwise.base import BaseConfig
from configs.stackwise.model import PRESETS, ArchitectureConfig, BlockOptions, ModelConfig
from configs.stackwise.training import ProgressiveConfig, TrainingConfig

__all__ = [
    "ArchitectureConfig",
    "BaseConfig",
    "BlockOptions",
    "DataConfig",
    "ModelConfig",
    "ProgressiveConfig",
    "StackWiseConfig",
    "TrainingConfig",
]


class DataConfig(BaseConfig):
    """What a loader's batches are cut to: at most `seq_len` positions; a `pad_token_id` is no token of the text."""

    seq_len: PositiveInt | None = None
    pad_token_id: NonNegativeInt | None = None


class StackWiseConfig(BaseConfig):
    """Model, training and data."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    data: DataConfig = Field(default_factory=DataConfig)

    def problems(self) -> list[Problem]:
        """What does not fit together between the sections."""
        return list(_between(self.model, self.training.progressive, self.data))


def _between(model: ModelConfig, progressive: ProgressiveConfig, data: DataConfig) -> Iterator[Problem]:
    architecture, section = model.architecture, ("training", "progressive")
    for name, mode in (("attention_mode", model.attention_mode), ("attention_preset", PRESETS.get(model.attention_preset or ""))):
        if progressive.training_objective == "clm" and "bidirectional" in (mode or ()):
            yield ("model", name), "the objective clm asks for the next token, which bidirectional attention sees: make it causal"
    if progressive.mask_token_id is not None and progressive.mask_token_id > model.vocab_size:
        text = f"{progressive.mask_token_id} must be at most model.vocab_size = {model.vocab_size}"
        yield (*section, "mask_token_id"), text
    said = progressive.max_stacks != type(progressive).model_fields["max_stacks"].default
    if said and architecture.n_stacks > progressive.max_stacks and architecture != ArchitectureConfig():
        text = f"{architecture.n_stacks} is more than training.progressive.max_stacks = {progressive.max_stacks}"
        yield ("model", "architecture", "n_stacks"), text
    if data.seq_len is not None and model.max_seq_len is not None and data.seq_len > model.max_seq_len:
        yield ("data", "seq_len"), f"{data.seq_len} is more than model.max_seq_len = {model.max_seq_len}"
