"""Specs: what a run is, as data; read from YAML, checked whole, hashed by content."""

from configs.errors import ConfigError, Problems
from configs.growth import GrowthSpec
from configs.load import load, read_yaml
from configs.registry import Registry
from configs.spec import Spec
from configs.stackwise import (
    ArchitectureConfig,
    BaseConfig,
    DataConfig,
    ModelConfig,
    ProgressiveConfig,
    StackWiseConfig,
    TrainingConfig,
)

__all__ = [
    "ArchitectureConfig",
    "BaseConfig",
    "ConfigError",
    "DataConfig",
    "GrowthSpec",
    "ModelConfig",
    "Problems",
    "ProgressiveConfig",
    "Registry",
    "Spec",
    "StackWiseConfig",
    "TrainingConfig",
    "load",
    "read_yaml",
]
