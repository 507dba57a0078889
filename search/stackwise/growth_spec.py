"""Turns the guide's configuration and a data loader into the spec of a growth."""

from pydantic import PositiveInt

from configs import ConfigError, GrowthSpec, StackWiseConfig
from configs.load import validate
from models import RackSpec
from models.architecture.helpers import stack_spec
from search.jobs.progressive.fields import GrowthDataSpec
from search.jobs.progressive.spec import ProgressiveSpec
from search.stackwise.loader_samples import evaluated_batches, mode_of, objective_of, steps_between_evaluations
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


def loaded_spec(
    config: StackWiseConfig, samples: Samples, *, rack: RackSpec, growth: GrowthSpec, target_stacks: int | None
) -> LoadedSpec:
    """The growth of a rack to so many stacks, or (None) its training at once; ConfigError if that does not fit together."""
    training = config.training
    is_grown = training.progressive.enabled and training.strategy == "progressive" and target_stacks is not None
    target = target_stacks if is_grown and target_stacks is not None else len(rack.stacks)
    grown = {"enabled": is_grown, "target_stacks": target, "num_time_steps": _n_time_steps(rack, growth, target)}
    n_batches, n_rows = evaluated_batches(training, samples)
    scale = (training.current_block_lr or training.learning_rate) / training.learning_rate
    tree = {
        "rack": {**rack.to_dict(), "time": None},
        "data": {"vocab_size": rack.vocab_size, "seq_len": samples.seq_len, "batch_size": training.batch_size},
        "objective": objective_of(training, vocab_size=rack.vocab_size),
        "growth": growth.model_copy(update=grown).to_dict(),  # where the time of a stack is a function, what it says of these
        "stack": {**stack_spec(config.model, 0).to_dict(), "uid": None, "lr_scale": scale},
        "training_architecture": "rackwise" if is_grown else mode_of(training),
        "local_loss": training.local_loss,
        "n_steps": training.max_steps,
        "lr": training.learning_rate,
        "weight_decay": training.weight_decay,
        "train": {"device": training.device, "grad_clip": training.grad_clip},
        "eval_every": steps_between_evaluations(training),
        "eval_batch_size": n_rows,
        "n_eval_batches": n_batches,
        "seed": training.seed,
        "checkpoint_every": training.save_interval,
    }
    return validate(LoadedSpec, tree, "training")


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
