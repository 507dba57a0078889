"""One configuration out of a builder's and a trainer's: sizes take the trainer's settings, two that differ are refused."""

from collections.abc import Iterator, Mapping
from typing import Any

from configs import ConfigError, ModelConfig, StackWiseConfig
from models.architecture.block_options import resolved_options

Difference = tuple[str, Any, Any]
"""A key, what the builder has there, and what the trainer has."""


def of_sizes(sizes: Mapping[str, Any], own: ModelConfig, trainers: StackWiseConfig, *, has_stacks: bool) -> StackWiseConfig:
    """The trainer's settings with the model of a builder that was made from sizes; what they leave open is the trainer's.

    Raises:
        ConfigError: with the keys of which the trainer's section `model` says something else than the sizes, or than the stacks
            that there are.
    """
    defaults = ModelConfig()
    said = {
        name: value
        for name in ModelConfig.model_fields
        if (value := getattr(trainers.model, name)) != getattr(defaults, name) or name in trainers.model.model_fields_set
    }
    known = {**own.to_dict(), **resolved_options(own.block_options()).to_dict()}
    binding = {*sizes, *(set(type(own).model_fields) - {"architecture"} if has_stacks else ())}
    found = [
        (f"model.{name}", known[name], value)
        for name, value in said.items()
        if name in binding and value not in (getattr(own, name), known[name])
    ]
    _refuse("sizes", found)
    merged = trainers.model_copy(deep=True)
    for name in type(own).model_fields:
        if name in sizes or name not in said:
            setattr(merged.model, name, getattr(own, name))
    return merged


def refuse_differences(builders: StackWiseConfig, trainers: StackWiseConfig) -> None:
    """ConfigError with the keys of model and growth in which two configurations differ."""
    _refuse("configuration", list(_differences(builders, trainers)))


def _differences(builders: StackWiseConfig, trainers: StackWiseConfig) -> Iterator[Difference]:
    pairs = {
        "model": (builders.model, trainers.model),
        "training.progressive": (builders.training.progressive, trainers.training.progressive),
    }
    for section, (ours, theirs) in pairs.items():
        for name in type(ours).model_fields:
            key, here, there = f"{section}.{name}", getattr(ours, name), getattr(theirs, name)
            if name == "architecture":  # how many stacks a whole rack has is nothing that a builder reads
                key, here, there = f"{key}.blocks_per_stack", here.blocks_per_stack, there.blocks_per_stack
            if here != there:
                yield key, here, there


def _refuse(source: str, differences: list[Difference]) -> None:
    lines = [f"{key}: {there!r}, but the builder's {source} says {here!r}" for key, here, there in differences]
    if lines:
        text = "leave it out of one of them, or make the builder from the trainer's configuration"
        raise ConfigError("\n".join(f"trainer: {line}: {text}" for line in lines))
