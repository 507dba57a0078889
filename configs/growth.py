"""GrowthSpec: how a rack grows stack by stack, for the job `progressive` and for the guide's configuration alike."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_serializer,
    field_validator,
    model_validator,
)

from configs.errors import Problems
from configs.limits import LONGEST, MOST_BLOCKS, WIDEST
from configs.spec import Spec
from configs.time_mapping import WAYS_TO_SAY, CustomMapping, mapping_misfit, time_table

BuildingMode = Literal["append", "prepend"]
Problem = tuple[tuple[int | str, ...], str]
"""Where something does not fit, and what."""

Pattern = Literal["constant", "increasing", "decreasing", "linear"]


class AdapterSize(Spec):
    """The adapters of one stack; what is not given is that of all stacks."""

    rank: PositiveInt | None = None
    alpha: PositiveFloat | None = None


class GrowthSpec(Spec):
    """How a rack grows to `target_stacks` stacks (None: `max_stacks`): where a new one stands, how it starts, what trains.

    The trunk, all stacks but the new one, is `frozen`; or trains adapters on weights stored in `quantization_type` (`qlora`), in
    its `qlora_trunk_window` stacks next to the new one (None: in all); or trains on (`full`), at `trunk_lr_scale`. With
    `train_embedding` None the embedding trains in the first stage, and later where the trunk is `full`.

    `qlora_*` are the adapters that each stack has of its own: with `qlora_enabled`, or at precision `qlora`. Their size is the
    same for all (`simplified`), goes with the stack's index by pattern (`progressive`), or is said in `qlora_configs`
    (`variable`). Beside a dense weight they train only with `train_stack_lora_with_base`. `progressive_qlora_*` are a second set,
    on stacks of the trunk (`progressive_qlora` None: where its strategy is `qlora`; true: in a frozen one too, frozen). Both are
    of the linears of a block that globs in `qlora_targets` name (`query`, `mlp`, `mixer.*`). The weights of a new stack at
    `qlora` never learn: what `init` copies serves it better than what is drawn.

    What a part of the trunk that stands still makes of the samples is kept: with `cache_activations` None wherever there is one;
    true demands that there is, false keeps nothing.

    `stage_steps` is the number of steps of each stage, or of one after another, the last one holding on (None: the training's
    `max_steps`). A stage ends early when it has not improved by `min_delta` for `patience` evaluations. `joint_tuning_steps` at
    the end train all (`fine_tune_mode` full), all adapters, or the head.

    `time_*`: a time tells a new stack how noisy its samples are, by its place in the order of creation (`depth`), or the network
    by an embedding (`input`); the options of either are those of the objectives' times. A `custom_time_mapping` is the name of a
    file in `tasks/time_mappings/`, a list of time steps, or, in Python alone, a function; saved, that is the list it comes to.
    """

    outside_fingerprint = ("cache_mode", "cache_dir", "cache_bytes", "gradient_checkpointing")
    enabled: bool = True
    target_stacks: PositiveInt | None = None
    max_stacks: Annotated[PositiveInt, Field(le=MOST_BLOCKS)] = 12
    building_mode: BuildingMode = "append"
    init: Literal["identity", "random", "copy_last", "copy_middle"] = "identity"

    trunk_strategy: Literal["frozen", "qlora", "full"] = "frozen"
    trunk_lr_scale: NonNegativeFloat = 1.0
    qlora_trunk_window: PositiveInt | None = None
    quantization_type: Literal["nf4", "nvfp4", "fp8", "bfloat16", "half"] = "nf4"
    train_embedding: bool | None = None
    train_head: bool = True

    new_stack_precision: Literal["full", "half", "bfloat16", "fp8", "nvfp4", "qlora"] = "full"
    qlora_enabled: bool = False
    qlora_rank: PositiveInt = 16
    qlora_alpha: PositiveFloat = 32
    qlora_strategy: Literal["simplified", "progressive", "variable"] = "simplified"
    qlora_rank_pattern: Pattern = "increasing"
    qlora_alpha_pattern: Pattern = "constant"
    qlora_configs: dict[NonNegativeInt, AdapterSize] = Field(default_factory=dict)
    qlora_rslora: bool = False
    qlora_targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    train_stack_lora_with_base: bool = False
    progressive_qlora: bool | None = None
    progressive_qlora_rank: PositiveInt = 8
    progressive_qlora_alpha: PositiveFloat = 16

    cache_activations: bool | None = None
    cache_mode: Literal["auto", "memory", "arrow", "stream"] = "auto"
    cache_dir: str | None = None
    cache_bytes: PositiveInt | None = None
    cache_variants: PositiveInt = 4

    stage_steps: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    patience: PositiveInt | None = None
    min_delta: NonNegativeFloat = 0.0
    joint_tuning_steps: NonNegativeInt = 0
    fine_tune_mode: Literal["full", "adapters", "head"] = "full"
    gradient_checkpointing: bool = False
    prepend_loss: Literal["cross_entropy", "denoise_mse"] = "cross_entropy"

    time_interpretation: Literal["none", "input", "depth"] = "none"
    time_embedding_dim: Annotated[PositiveInt, Field(le=WIDEST)] = 512
    time_encoding_type: Literal["sinusoidal", "learned"] = "sinusoidal"
    stack_time_mapping: Literal["linear", "exponential", "custom"] = "linear"
    custom_time_mapping: CustomMapping | None = None
    time_per_stack: Annotated[PositiveInt, Field(le=LONGEST)] = 100
    num_time_steps: Annotated[PositiveInt, Field(le=LONGEST)] | None = None
    noise_direction: Literal["increasing", "decreasing"] = "increasing"
    time_sampling: Literal["batch", "sample"] = "batch"

    @field_validator("qlora_configs", mode="before")
    @classmethod
    def _take_text_keys(cls, sizes: Any) -> Any:
        """JSON knows no numbers as keys."""
        if isinstance(sizes, dict):
            for key in sizes:
                if not isinstance(key, str) and str(key) in sizes:
                    raise ValueError(f"the key {key} is given twice, as a number and as text")
        return sizes

    @property
    def final_stacks(self) -> int:
        """How many stacks there are at last."""
        return self.max_stacks if self.target_stacks is None else self.target_stacks

    @property
    def n_time_steps(self) -> int:
        """N, the number of time steps."""
        return self.num_time_steps or self.time_per_stack * (self.final_stacks - 1) + 1

    @field_serializer("custom_time_mapping")
    def _as_data(self, mapping: CustomMapping | None) -> str | list[int] | None:
        """A function as what it says of each stack: nobody who reads what is written has to find it, or to run it."""
        if callable(mapping):
            return list(time_table(mapping, self.final_stacks, self.n_time_steps))
        return list(mapping) if isinstance(mapping, tuple) else mapping

    @property
    def uncached_because(self) -> str | None:
        """Why no part of the trunk's output is the same at every step, and could be kept; None where some is."""
        if not self.enabled:
            return "with enabled: false there is no trunk: the whole rack trains at once"
        if self.building_mode == "prepend":
            return "below a stack that is prepended stands nothing but the embedding: leave it out, or set building_mode: append"
        if self.trunk_strategy == "full":
            return "all of a trunk that trains on (trunk_strategy: full) moves at every step: leave it out"
        if self.train_embedding:
            return "with train_embedding: true all that stands above the embedding moves at every step: leave one of them out"
        if self.trunk_strategy == "qlora" and self.qlora_trunk_window is None:
            return "all of a qlora trunk moves with its adapters at every step: set qlora_trunk_window, or leave it out"
        return None

    @property
    def caches(self) -> bool:
        """Whether the output of the part of the trunk that stands still is kept."""
        return self.cache_activations is not False and self.uncached_because is None

    @property
    def has_second_adapters(self) -> bool:
        """Whether stacks of the trunk get adapters beside their own."""
        return self.trunk_strategy == "qlora" if self.progressive_qlora is None else self.progressive_qlora

    def problems(self) -> list[Problem]:
        """What does not fit together."""
        return _misfits(self)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model_config.get("frozen"):
            return self  # it may become right with the next assignment
        problems = Problems()
        for location, message in self.problems():
            problems.add(location, message)
        problems.raise_if_any(type(self).__name__)
        return self


def _misfits(growth: GrowthSpec) -> list[Problem]:
    found: list[Problem] = []
    if growth.final_stacks > growth.max_stacks:
        found.append((("target_stacks",), f"{growth.target_stacks} is more than max_stacks = {growth.max_stacks}"))
    if growth.cache_activations and growth.uncached_because is not None:
        found.append((("cache_activations",), f"true keeps nothing here: {growth.uncached_because}"))
    found += _of_other_strategies(growth)
    if growth.qlora_trunk_window is not None and growth.trunk_strategy == "frozen":
        found.append((("qlora_trunk_window",), "says which stacks of the trunk train: set trunk_strategy: qlora"))
    has_adapters = growth.qlora_enabled or growth.new_stack_precision == "qlora" or growth.progressive_qlora is not False
    if growth.trunk_strategy == "qlora" and not has_adapters:
        text = "qlora trains the trunk's adapters, and there are none: set progressive_qlora or qlora_enabled"
        found.append((("trunk_strategy",), text))
    if growth.prepend_loss == "denoise_mse" and growth.building_mode != "prepend":
        found.append((("prepend_loss",), "denoise_mse is of a stack before the trunk: set building_mode: prepend"))
    if (growth.stack_time_mapping == "custom") != (growth.custom_time_mapping is not None):
        text = "stack_time_mapping custom needs one, and the others have none"
        found.append((("custom_time_mapping",), f"{text}: give {WAYS_TO_SAY}"))
    elif message := mapping_misfit(growth.custom_time_mapping, growth.final_stacks, growth.n_time_steps):
        found.append((("custom_time_mapping",), message))
    if growth.time_encoding_type == "sinusoidal" and growth.time_embedding_dim % 2:
        text = f"{growth.time_embedding_dim} must be even with time_encoding_type sinusoidal: half of it are sines, half cosines"
        found.append((("time_embedding_dim",), text))
    return found


def _of_other_strategies(growth: GrowthSpec) -> list[Problem]:
    """What is said of adapters and is of another strategy."""
    found: list[Problem] = []
    fields = type(growth).model_fields
    for name, strategy in (
        ("qlora_configs", "variable"),
        ("qlora_rank_pattern", "progressive"),
        ("qlora_alpha_pattern", "progressive"),
    ):
        said, default = getattr(growth, name), fields[name].get_default(call_default_factory=True)
        if said != default and growth.qlora_strategy != strategy:
            found.append(((name,), f"is of the qlora_strategy {strategy}, not of {growth.qlora_strategy}"))
    return found
