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
from configs.stackwise.at_rest import at_rest
from configs.stackwise.base import BaseConfig
from configs.stackwise.between import between
from configs.stackwise.model import ArchitectureConfig, BlockOptions, ModelConfig
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
        resting = (((("training", *place)), text) for place, text in at_rest(self.training))
        return [*between(self.model, self.training), *_data_problems(self.model, self.data), *resting]

    def validate_sections(self) -> None:
        """Check each section by itself: with a model that is not the section `model`, they may fit together all the same."""
        for section in (self.model, self.training, self.data):
            section.validate()


def _data_problems(model: ModelConfig, data: DataConfig) -> Iterator[Problem]:
    if data.seq_len is not None and model.max_seq_len is not None and data.seq_len > model.max_seq_len:
        yield ("data", "seq_len"), f"{data.seq_len} is more than model.max_seq_len = {model.max_seq_len}"
    if data.pad_token_id is not None and data.pad_token_id >= model.vocab_size:
        yield ("data", "pad_token_id"), f"{data.pad_token_id} must be below model.vocab_size = {model.vocab_size}"
