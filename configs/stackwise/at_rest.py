"""Options that were changed though nothing reads them beside the others: each with the key that would have it read.

Sizes that the guide's own file gives whatever the time is (`time_embedding_dim`), those of adapters, which a stack that is added
by hand may have (`qlora_*`, `progressive_qlora_*`), and places and limits (`cache_*`) may rest; with
`enabled: false` so may what is of a trunk.
"""

from collections.abc import Callable, Iterator

from configs.growth import Problem
from configs.stackwise.training import ProgressiveConfig, TrainingConfig

Rule = tuple[tuple[str, ...], Callable[[ProgressiveConfig], bool], str]

RULES: tuple[Rule, ...] = (
    (("trunk_lr_scale",), lambda growth: growth.trunk_strategy == "full", "trunk_strategy: full"),
    (("quantization_type", "qlora_trunk_window"), lambda growth: growth.trunk_strategy == "qlora", "trunk_strategy: qlora"),
    (("train_stack_lora_with_base",), lambda growth: growth.qlora_enabled, "qlora_enabled: true"),
    (("min_delta",), lambda growth: growth.patience is not None, "patience"),
    (("fine_tune_mode",), lambda growth: growth.joint_tuning_steps > 0, "joint_tuning_steps"),
    (("time_sampling",), lambda growth: growth.time_interpretation == "input", "time_interpretation: input"),
    (
        ("stack_time_mapping", "noise_direction"),
        lambda growth: growth.time_interpretation == "depth",
        "time_interpretation: depth",
    ),
    (
        ("time_per_stack", "num_time_steps", "final_mask_ratio"),
        lambda growth: growth.time_interpretation != "none",
        "time_interpretation: depth, or input",
    ),
    (
        ("mask_schedule",),
        lambda growth: growth.time_interpretation != "none" or growth.mask_schedule == "constant",
        "time_interpretation: depth, or input",
    ),
)


def at_rest(training: TrainingConfig) -> Iterator[Problem]:
    """Places in `training`, and what would have them read."""
    growth = training.progressive
    fields = type(growth).model_fields
    for names, is_read, needed in RULES:
        for name in names:
            if getattr(growth, name) != fields[name].default and not is_read(growth):
                yield ("progressive", name), f"changes nothing here: set {needed}, or leave it out"
    is_grown = growth.enabled and training.strategy == "progressive"
    if training.current_block_lr is not None and not is_grown and training.mode == "rackwise":
        key = "end_to_end_scope" if training.strategy == "end_to_end" else "training_architecture"
        yield ("current_block_lr",), f"there is no current block where the whole rack learns at once: set {key}: stackwise"
