"""What training refuses of a growth, though masks alone can be made by it."""

from collections.abc import Iterator

from configs.growth import GrowthSpec, Problem
from configs.time_steps import depth_step


def growth_problems(growth: GrowthSpec, *, has_adapters: bool = False) -> Iterator[Problem]:
    """Places, and what is wrong there; `has_adapters` where stacks say some themselves."""
    if growth.time_interpretation == "input" and growth.time_sampling == "batch" and growth.caches:
        text = "one time step for a whole batch cannot be cached: give time_sampling: sample, or cache_activations: false"
        yield ("time_sampling",), text
    has_adapters |= growth.qlora_enabled or growth.new_stack_precision == "qlora" or growth.has_second_adapters
    if growth.joint_tuning_steps and growth.fine_tune_mode == "adapters" and not has_adapters:
        text = "there are no adapters to tune: set qlora_enabled or progressive_qlora, or choose full or head"
        yield ("fine_tune_mode",), text
    moves = growth.trunk_strategy == "full" if growth.train_embedding is None else growth.train_embedding
    if growth.prepend_loss == "denoise_mse" and moves:
        text = "denoise_mse measures by the embedding, which would shrink to please it: set train_embedding: false"
        yield ("train_embedding",), text


def shared_steps(growth: GrowthSpec) -> Problem | None:
    """Stacks that would have the same time by their depth, where it is said how many there are at last."""
    n_stacks, n_steps, mapping = growth.target_stacks, growth.num_time_steps, growth.stack_time_mapping
    if growth.time_interpretation != "depth" or n_stacks is None or n_steps is None or mapping == "custom":
        return None
    sizes = {"max_stacks": n_stacks, "time_per_stack": growth.time_per_stack, "n_time_steps": n_steps}
    table = [depth_step(mapping, index, **sizes) for index in range(n_stacks)]
    if len(set(table)) == n_stacks:
        return None
    return ("num_time_steps",), f"stacks share time steps: {table}; give more of them, or null"
