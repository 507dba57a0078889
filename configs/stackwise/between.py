"""What does not fit together between the sections of the guide's configuration: all that training would refuse of it."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from configs.errors import known_names
from configs.growth import Problem
from configs.growth_checks import growth_problems, shared_steps
from configs.local_losses import NO_CHECKPOINTED_TAIL
from configs.stackwise.model import PRESETS, ArchitectureConfig, ModelConfig
from configs.stackwise.training import ProgressiveConfig, TrainingConfig

MIXER = ("query", "key", "value", "output")
_MLA = ("query", "query_rope", "latent", "key_rope", "key_up", "value_up", "output")
_MLP = ("gate", "up", "down")
"""The linears of a block: of attention, of its type mla, of the SwiGLU."""


NOT_GROWN = (
    "{} is how a whole rack trains at once, but here stacks are added one by one: set rackwise, "
    "or training.progressive.enabled: false"
)
"""Of a `training_architecture` beside a target that a rack grows to."""


def between(model: ModelConfig, training: TrainingConfig) -> Iterator[Problem]:
    """Places in model and training, and what is wrong there."""
    growth = training.progressive
    yield from _model_problems(model, growth)
    is_grown = training.strategy == "progressive" and growth.enabled and growth.target_stacks is not None
    if is_grown and training.training_architecture != "rackwise":
        yield ("training", "training_architecture"), NOT_GROWN.format(training.training_architecture)
    if growth.new_stack_precision == "half" and training.mode != "rackwise":
        text = "half needs its loss scaled, and local losses are not: choose bfloat16"
        yield ("training", "progressive", "new_stack_precision"), text
    if training.mode != "rackwise" and growth.gradient_checkpointing and not training.local_loss.tail_learns:
        yield ("training", "local_loss", "tail_learns"), NO_CHECKPOINTED_TAIL
    for place, text in _progressive_problems(model, growth):
        yield ("training", "progressive", *place), text


def _model_problems(model: ModelConfig, growth: ProgressiveConfig) -> Iterator[Problem]:
    if growth.training_objective == "clm" and _mode(model) == "bidirectional":
        name = "attention_preset" if model.attention_preset else "attention_mode"
        text = "the objective clm asks for the next token, which bidirectional attention sees: set attention_mode: causal"
        yield ("model", name), f"{text}{', and no preset' if model.attention_preset else ''}"
    architecture, said = model.architecture, growth.max_stacks != type(growth).model_fields["max_stacks"].default
    if said and architecture.n_stacks > growth.max_stacks and architecture != ArchitectureConfig():
        text = f"{architecture.n_stacks} is more than training.progressive.max_stacks = {growth.max_stacks}"
        yield ("model", "architecture", "n_stacks"), text


def _mode(model: ModelConfig) -> str:
    """The mode of attention, the default one too."""
    return PRESETS[model.attention_preset][1] if model.attention_preset else model.attention_mode or "bidirectional"


def _progressive_problems(model: ModelConfig, growth: ProgressiveConfig) -> Iterator[Problem]:
    yield from growth_problems(growth)
    if (shared := shared_steps(growth)) is not None:
        yield shared
    if growth.mask_token_id is not None and growth.mask_token_id >= model.vocab_size:
        yield ("mask_token_id",), f"{growth.mask_token_id} must be below model.vocab_size = {model.vocab_size}"
    if growth.random_fraction and model.vocab_size == 1:
        yield ("random_fraction",), "needs a token beside the mask, but model.vocab_size = 1"
    if growth.prepend_loss == "denoise_mse" and growth.training_objective != "mlm":
        text = f"denoise_mse needs an input that is corrupted: set training_objective: mlm, not {growth.training_objective}"
        yield ("prepend_loss",), text
    n_stages = growth.final_stacks if growth.enabled else 1
    if isinstance(growth.stage_steps, tuple) and len(growth.stage_steps) > n_stages:
        yield ("stage_steps",), f"{len(growth.stage_steps)} numbers for {n_stages} stage(s)"
    linears = _linears(model)
    for glob in growth.qlora_targets:
        if glob != "*" and not any(fnmatchcase(name, f"*.{glob}") for name in linears):
            names = {name.rpartition(".")[2] for name in linears}
            yield ("qlora_targets",), f"'{glob}' matches no linear of a block; {known_names(glob, names)}"


def _linears(model: ModelConfig) -> list[str]:
    """What globs may name: the linears of a block, and the parts that they are in."""
    kind = PRESETS[model.attention_preset][0] if model.attention_preset else model.attention_type
    mixer = MIXER if kind != "mla" else _MLA if model.mla_rq is None else ("query_latent", *_MLA)
    names = {"mixer": mixer, "mlp": _MLP}
    linears = [f"blocks.0.{part}.{name}" for part, found in names.items() for name in found]
    return [*linears, *(f"blocks.0.{part}" for part in names)]
