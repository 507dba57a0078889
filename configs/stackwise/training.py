"""The section `training` of the guide's configuration: steps, rates, and the subsection `progressive`."""

import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, field_serializer

from configs.errors import ConfigError, message_of
from configs.growth import AdapterSize, GrowthSpec, Problem
from configs.load import validate
from configs.local_losses import LocalLossSpec
from configs.stackwise.base import BaseConfig

Share = Annotated[float, Field(ge=0, le=1)]
TimeMapping = Callable[[int, int, int], float]
"""(stack_idx, max_stacks, num_time_steps) to a time step."""

MASKS = {
    "mask_token_id": "mask_token_id",
    "random_fraction": "random_fraction",
    "keep_fraction": "keep_fraction",
    "mask_schedule": "schedule",
    "mask_ratio": "mask_ratio",
    "final_mask_ratio": "final_mask_ratio",
    "loss_weighting": "loss_weighting",
}
"""The objective mlm's options, and what it calls them itself."""


class ProgressiveConfig(GrowthSpec, BaseConfig):
    """How the rack grows (see `GrowthSpec`), and what its stages are asked.

    Of the objective mlm: the chosen tokens become `mask_token_id` (None: the last token of the model, `vocab_size - 1`, which no
    text may use then), a random one, or stay. `mask_schedule` says how the share of them goes with time from `mask_ratio` to
    `final_mask_ratio` (None: linear, where there is a time; constant, where there is none). A `custom_time_mapping` may be a
    function.
    """

    custom_time_mapping: str | TimeMapping | None = None  # type: ignore[assignment]
    training_objective: Literal["mlm", "clm", "custom"] = "mlm"
    mask_token_id: NonNegativeInt | None = None
    random_fraction: Share = 0.0
    keep_fraction: Share = 0.0
    mask_schedule: Literal["constant", "linear", "exponential", "cosine"] | None = None
    mask_ratio: Share = 0.15
    final_mask_ratio: Share | None = None
    loss_weighting: Literal["none", "elbo"] = "none"

    def growth(self) -> GrowthSpec:
        """The frozen spec of the growth; ConfigError where it does not fit together."""
        tree = {name: getattr(self, name) for name in GrowthSpec.model_fields}
        if callable(self.custom_time_mapping):
            tree["custom_time_mapping"] = _place(self.custom_time_mapping)
        if self.unfindable is not None:
            raise ConfigError(f"training.progressive: custom_time_mapping: {self.unfindable}")
        return validate(GrowthSpec, tree, "training.progressive")

    @property
    def unfindable(self) -> str | None:
        """Why a run, which may be on another machine, could not find the function of time; None if it could, or there is none."""
        function = self.custom_time_mapping
        if not callable(function):
            return None
        module, _, name = _place(function).partition(":")
        if getattr(sys.modules.get(module), name, None) is function:
            return None
        text = "is no function at the top of a module, where a run, which may be on another machine, could find it"
        return f"{_place(function)} {text}"

    def objective(self, vocab_size: int | None = None) -> dict[str, Any]:
        """What the stages are asked, as a spec in plain values; `vocab_size` is the model's, None if nobody knows it."""
        if self.training_objective != "mlm":
            return {"kind": self.training_objective}
        options = {theirs: getattr(self, ours) for ours, theirs in MASKS.items()}
        if self.mask_token_id is None and vocab_size is not None:
            options["mask_token_id"] = vocab_size - 1
        return {"kind": "mlm", **options, "schedule": self.schedule}

    @property
    def schedule(self) -> str:
        """How the share of masked tokens goes with time."""
        return self.mask_schedule or ("constant" if self.time_interpretation == "none" else "linear")

    def problems(self) -> list[Problem]:
        """What does not fit together."""
        fields = type(self).model_fields
        changed = [name for name in MASKS if getattr(self, name) != fields[name].default]
        unread = changed if self.training_objective != "mlm" else []
        text = f"is of the objective mlm, not of {self.training_objective}"
        return [*super().problems(), *(((name,), text) for name in unread), *self._mask_misfits(), *self._size_misfits()]

    def _mask_misfits(self) -> Iterator[Problem]:
        if self.random_fraction + self.keep_fraction > 1:
            text = f"random_fraction + keep_fraction = {self.random_fraction} + {self.keep_fraction} must be at most 1"
            yield ("keep_fraction",), text
        if self.loss_weighting == "elbo" and self.random_fraction + self.keep_fraction:
            yield ("loss_weighting",), "elbo is of masks alone: random_fraction and keep_fraction must be 0"
        if self.final_mask_ratio is not None and self.schedule == "constant":
            yield ("final_mask_ratio",), "a constant schedule has none: set another mask_schedule, and a time_interpretation"

    def _size_misfits(self) -> Iterator[Problem]:
        """Of sizes that have been set one by one: what is set in a mapping is not seen before."""
        for index, size in self.qlora_configs.items():
            try:
                AdapterSize.model_validate(size)
            except ValidationError as error:
                yield from ((("qlora_configs", str(index), *line["loc"]), message_of(line)) for line in error.errors())

    @field_serializer("qlora_configs")
    def _checked_sizes(self, sizes: dict[int, AdapterSize]) -> dict[str, Any]:
        return {str(index): AdapterSize.model_validate(size).to_dict() for index, size in sizes.items()}

    @field_serializer("custom_time_mapping")
    def _place_of_function(self, mapping: str | TimeMapping | None) -> str | None:
        return _place(mapping) if callable(mapping) else mapping


class TrainingConfig(BaseConfig):
    """How the rack is trained: stack by stack (`strategy` progressive, with `progressive.enabled`), or all at once.

    At once, `training_architecture` says by which losses: `rackwise` end to end, `stackwise` and `blockwise` each unit by a loss
    of its own (`local_loss`, see `LocalLossSpec`), with `current_block_lr` where that is not the `learning_rate`. The strategy
    `end_to_end` takes that of its `end_to_end_scope`. Every `save_interval` steps (None: every 20 seconds or so) it is saved.
    """

    training_architecture: Literal["rackwise", "stackwise", "blockwise"] = "rackwise"
    strategy: Literal["progressive", "end_to_end"] = "progressive"
    end_to_end_scope: Literal["rackwise", "stackwise"] = "rackwise"
    local_loss: LocalLossSpec = Field(default_factory=LocalLossSpec)
    max_steps: PositiveInt = 100
    learning_rate: PositiveFloat = 1e-3
    current_block_lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.1
    batch_size: PositiveInt = 32
    grad_clip: PositiveFloat | None = 1.0
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_interval: PositiveInt | None = None
    progressive: ProgressiveConfig = Field(default_factory=ProgressiveConfig)

    @property
    def mode(self) -> Literal["rackwise", "stackwise", "blockwise"]:
        """What learns from a loss of its own where a whole rack trains at once."""
        return self.end_to_end_scope if self.strategy == "end_to_end" else self.training_architecture

    def problems(self) -> list[Problem]:
        """What does not fit together."""
        found: list[Problem] = []
        if self.end_to_end_scope != "rackwise" and self.strategy != "end_to_end":
            found.append((("end_to_end_scope",), f"is of the strategy end_to_end, not of {self.strategy}"))
        if self.mode == "rackwise" and self.local_loss != LocalLossSpec():
            text = "is of units that learn by themselves: set training_architecture: stackwise, or blockwise"
            found.append((("local_loss",), text))
        return found


def _place(function: TimeMapping) -> str:
    return f"{function.__module__}:{function.__qualname__}"
