"""Turns the guide's configuration and a data loader into the spec of a growth."""

from pydantic import PositiveInt, ValidationError

from configs import ConfigError, GrowthSpec, StackWiseConfig
from configs.errors import Location, message_of, yaml_path
from configs.stackwise.between import NOT_GROWN
from models import RackSpec
from models.architecture.helpers import stack_spec
from search.jobs.progressive.fields import GrowthDataSpec
from search.jobs.progressive.spec import ProgressiveSpec
from search.stackwise.loader_samples import evaluated_batches, steps_between_evaluations
from tasks.checks import check_integers
from tasks.samples.samples import Samples


class LoadedDataSpec(GrowthDataSpec):
    """Samples that a data loader yields, of so many tokens and positions."""

    task: None = None
    vocab_size: PositiveInt
    seq_len: PositiveInt

    def sizes(self) -> tuple[int, int]:
        """The vocabulary, and the positions of a sample."""
        return self.vocab_size, self.seq_len


class LoadedSpec(ProgressiveSpec):
    """A growth on such samples."""

    data: LoadedDataSpec


def grows(config: StackWiseConfig, target_stacks: int | None) -> bool:
    """Whether stacks are added one by one up to a target, each trained by itself; if not, the whole rack trains at once.

    Raises:
        ConfigError: where a target is none, or what a whole rack trains by is said of stacks that are added.
    """
    training = config.training
    if target_stacks is not None:
        check_integers(minimum=1, target_stacks=target_stacks)
        if target_stacks > training.progressive.max_stacks:
            raise ConfigError(f"target_stacks: {target_stacks} is more than max_stacks = {training.progressive.max_stacks}")
    is_grown = training.progressive.enabled and training.strategy == "progressive" and target_stacks is not None
    if is_grown and training.training_architecture != "rackwise":
        raise ConfigError(f"training.training_architecture: {NOT_GROWN.format(training.training_architecture)}")
    return is_grown


def loaded_spec(
    config: StackWiseConfig, samples: Samples, *, rack: RackSpec, growth: GrowthSpec, target_stacks: int | None
) -> LoadedSpec:
    """The growth of a rack to so many stacks, or its training at once; ConfigError, by the guide's keys, if that does not fit."""
    training, is_grown = config.training, grows(config, target_stacks)
    target = len(rack.stacks) if target_stacks is None else target_stacks
    grown = {"enabled": is_grown, "target_stacks": target, "num_time_steps": _n_time_steps(rack, growth, target)}
    if not is_grown:
        grown["cache_activations"] = None  # there is no trunk whose output could be demanded
    n_batches, n_rows = evaluated_batches(training, samples)
    block_lr = training.current_block_lr or training.learning_rate
    tree = {
        "rack": {**rack.to_dict(), "time": None},
        "data": {"vocab_size": rack.vocab_size, "seq_len": samples.seq_len, "batch_size": training.batch_size},
        "objective": training.progressive.objective(rack.vocab_size),
        "growth": growth.model_copy(update=grown).to_dict(),  # where the time of a stack is a function, what it says of these
        "stack": {**stack_spec(config.model, 0).to_dict(), "uid": None, "lr_scale": block_lr / training.learning_rate},
        "training_architecture": "rackwise" if is_grown else training.mode,
        "local_loss": training.local_loss,
        "n_steps": training.max_steps,
        "lr": training.learning_rate if is_grown or training.mode == "rackwise" else block_lr,
        "weight_decay": training.weight_decay,
        "train": {"device": training.device, "grad_clip": training.grad_clip},
        "eval_every": steps_between_evaluations(training),
        "eval_batch_size": n_rows,
        "n_eval_batches": n_batches,
        "seed": training.seed,
        "checkpoint_every": training.save_interval,
    }
    try:
        return LoadedSpec.model_validate(tree)
    except ValidationError as error:
        lines = [f"{yaml_path(_guides_key(line['loc']))}: {message_of(line)}" for line in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


GUIDES_KEYS: dict[Location, Location] = {
    ("rack", "max_length"): ("model", "max_seq_len"),
    ("rack",): ("model",),
    ("stack",): ("model",),
    ("objective",): ("training", "progressive", "training_objective"),
    ("growth",): ("training", "progressive"),
    ("n_steps",): ("training", "max_steps"),
    ("lr",): ("training", "learning_rate"),
    ("train",): ("training",),
}
"""What the configuration calls what the spec of a growth has at these places; all else is `training`'s, under the same name."""


def _guides_key(location: Location) -> Location:
    for place, key in GUIDES_KEYS.items():
        if location[: len(place)] == place:
            return (*key, *location[len(place) :])
    return ("training", *location)


def _n_time_steps(rack: RackSpec, growth: GrowthSpec, target_stacks: int) -> int | None:
    """N where time is an input: what the rack has learnt with, or else enough for all stacks that there may be at last."""
    said = growth.num_time_steps
    if growth.time_interpretation != "input":
        return said
    if rack.time is None:
        return said or growth.time_per_stack * (max(growth.final_stacks, target_stacks) - 1) + 1
    if said not in (None, rack.time.n_steps):
        text = f"num_time_steps = {said}: the rack has learnt with {rack.time.n_steps}; leave it out"
        raise ConfigError(f"training.progressive: {text}")
    return rack.time.n_steps
