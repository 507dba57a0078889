"""The guide's TimeStepMasking: masks a batch for one stack, by the time step that belongs to it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from configs import ConfigError, ProgressiveConfig
from configs.errors import known_names
from tasks.checks import check_integers
from tasks.objectives import OBJECTIVES
from tasks.objectives.shared.objective import Draw, Objective, Sequences
from tasks.objectives.shared.time_steps import DepthTime
from tasks.samples.loader_batches import as_sequences
from tasks.samples.objective_batches import StageTime, TargetBatch, apply_objective


class TimeStepMasking:
    """What each stack is asked, by the times of a configuration.

    >>> masking = TimeStepMasking({"time_interpretation": "depth", "time_per_stack": 100, "max_stacks": 8})
    >>> masking.get_time_step_for_stack(stack_idx=2)
    200
    >>> masking.generate_masks_for_stack({"input_ids": np.arange(12).reshape(2, 6)}, stack_idx=2).shape
    (2, 6)

    Nothing is drawn from a state: masks are functions of the seed, the stack, the sample and a variant, such as the epoch.

    Args:
        config: a `StackWiseConfig`, one of its sections `training` or `training.progressive`, or the like: a mapping or an object
            with the same keys, nested or flat.
        seed: of masks and times; None is `training.seed`, if there is one, otherwise 0.
        vocab_size: tokens are below it, and without a `mask_token_id` the last one is the mask, as in training; None is
            `model.vocab_size`, if it exists.

    Raises:
        ConfigError: for keys and values that do not exist, each with its name and what would be right.
    """

    def __init__(self, config: Any, *, seed: int | None = None, vocab_size: int | None = None) -> None:
        self.options = _progressive(config)
        self.options.validate()
        training = _part(config, "training")
        self.seed: int = _part(training, "seed", 0) if seed is None else seed
        self.vocab_size: int | None = _part(_part(config, "model"), "vocab_size") if vocab_size is None else vocab_size
        n_steps = self.options.time_per_stack * (self.options.max_stacks - 1) + 1
        self.n_time_steps = self.options.num_time_steps or n_steps
        self.depth_time = self._depth_time() if self.options.time_interpretation == "depth" else None

    def get_time_step_for_stack(self, stack_idx: int, *, step: int = 0) -> int:
        """From 0 to N - 1: the stack's own by its depth; where time is an input, drawn for a training step; 0 without times.

        Stacks above `max_stacks` have the time of the last one.
        """
        time = self.stage_time(stack_idx)
        draw = Draw(seed=self.seed, stage=stack_idx)
        return int(time.steps(np.zeros(1, dtype=np.int64), draw, step)[0])

    def generate_masks_for_stack(self, batch: Any, stack_idx: int, *, variant: int = 0, step: int = 0) -> np.ndarray:
        """Where a batch [B, T] is asked, [B, T] bool: of the objective mlm, the tokens that are masked.

        `batch` is what `as_sequences` reads. The share of masked tokens is the schedule's at the stack's time.
        """
        return self._apply(as_sequences(batch), stack_idx, variant=variant, step=step).weights > 0

    def apply(self, batch: Sequences, stack_idx: int, *, variant: int = 0, step: int = 0) -> TargetBatch:
        """What the stack is asked of a batch; `step` is that of training, for a time that is drawn for a batch.

        Raises:
            ConfigError: if nobody has said which token is the mask, or which random ones there are.
        """
        options = self.options
        if options.training_objective == "mlm" and self.vocab_size is None:
            if options.mask_token_id is None:
                raise ConfigError("mask_token_id: which token is the mask? Give it, or a vocab_size, whose last one it is then")
            if options.random_fraction:
                raise ConfigError(f"random_fraction = {options.random_fraction} draws tokens below a vocab_size: give one")
        return self._apply(batch, stack_idx, variant=variant, step=step)

    def _apply(self, batch: Sequences, stack_idx: int, *, variant: int, step: int) -> TargetBatch:
        draw = Draw(seed=self.seed, stage=stack_idx, variant=variant)
        return apply_objective(self.objective(), batch, time=self.stage_time(stack_idx), draw=draw, training_step=step)

    def objective(self) -> Objective:
        """What is asked; without a `vocab_size`, of tokens of any size."""
        part = OBJECTIVES.part(self.options.objective(self.vocab_size))
        objective: Objective = OBJECTIVES.build(part, vocab_size=self.vocab_size or np.iinfo(np.int32).max)
        return objective

    def stage_time(self, stack_idx: int) -> StageTime:
        """The time of a stack's samples, and how it is drawn."""
        check_integers(minimum=0, stack_idx=stack_idx)
        return StageTime(
            interpretation=self.options.time_interpretation,
            n_steps=self.n_time_steps,
            step=0 if self.depth_time is None else self.depth_time.time_step(min(stack_idx, self.options.max_stacks - 1)),
            sampling=self.options.time_sampling,
        )

    def _depth_time(self) -> DepthTime:
        found = DepthTime(
            max_stacks=self.options.max_stacks,
            mapping=self.options.stack_time_mapping,
            time_per_stack=self.options.time_per_stack,
            n_time_steps=self.n_time_steps,
            custom=self.options.custom_time_mapping,
            noise_direction=self.options.noise_direction,
        )
        _ = found.table  # what is wrong with it is told now
        return found


def _progressive(config: Any) -> ProgressiveConfig:
    """The section of the configuration that says how a rack grows, whatever it is wrapped in."""
    for name in ("training", "progressive"):
        config = _part(config, name, config)
    if isinstance(config, ProgressiveConfig):
        return config
    if not isinstance(config, Mapping):
        config = _said(config)
    return ProgressiveConfig.from_dict(config)


def _said(config: Any) -> dict[str, Any]:
    """The keys of an object; ConfigError for one that has others, or none."""
    fields = ProgressiveConfig.model_fields
    found = {name: getattr(config, name) for name in fields if hasattr(config, name)}
    for name in getattr(config, "__dict__", {}):
        if name not in fields and not name.startswith("_"):
            raise ConfigError(f"{type(config).__name__}: unknown key '{name}'; {known_names(name, fields)}")
    if not found:
        raise ConfigError(f"{type(config).__name__} says nothing of how a rack grows; {known_names('', fields)}")
    return found


def _part(config: Any, name: str, default: Any = None) -> Any:
    found = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return default if found is None else found
