"""One trial of the suite, or several packed: draw the data, train, score with the best weights."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from configs import Spec
from models import BackboneSpec, RackSpec
from search import checkpoint, metrics
from search.batches import Batch, EpochBatches
from search.devices import autocast, hardware, resolve_device
from search.mad.task import TaskSpec
from search.member import Member, TrainSpec
from search.packing import Pack
from search.training import train
from tasks import Examples, Split, Task, cached, draw

Row = dict[str, Any]


class TrialSpec(Spec):
    """All that a trial's result depends on; its fingerprint names the result.

    The model is the rack, or, when a caller brings its own, whatever `model_id` stands for.
    """

    rack: RackSpec | None = None
    model_id: str | None = None
    setting: TaskSpec
    mode: Literal["mad", "clean"]
    epochs: PositiveInt
    batch_size: PositiveInt
    train: TrainSpec
    seed: NonNegativeInt
    lr: PositiveFloat
    weight_decay: NonNegativeFloat

    @property
    def n_steps(self) -> int:
        """Optimizer steps, if nothing stops the trial early."""
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches that the training data make; the last one may be smaller."""
        return -(-self.setting.n_train // self.batch_size)


@dataclass(frozen=True)
class Trial:
    """A trial and the names it is reported under."""

    architecture: str
    task: str
    change: str
    spec: TrialSpec

    def at(self, seed: int, lr: float, weight_decay: float) -> Trial:
        """The same setting at another point of the grid."""
        return replace(self, spec=self.spec.model_copy(update={"seed": seed, "lr": lr, "weight_decay": weight_decay}))

    def labels(self) -> Row:
        """The columns that say which trial a result is of."""
        spec = self.spec
        names = {"key": spec.fingerprint(), "architecture": self.architecture, "task": self.task, "change": self.change}
        return {**names, "seed": spec.seed, "lr": spec.lr, "weight_decay": spec.weight_decay}


def rack_for(backbone: BackboneSpec, setting: TaskSpec) -> RackSpec:
    """The backbone with the embedding and head that the task needs, as the suite defines them.

    Untied, with biases; the autoencoder's linears start from N(0, 0.02), as the reference's do.
    """
    task = setting.instance()
    head = {"kind": task.read_out, "bias": True}
    init_std = 0.02 if task.read_out == "autoencoder" and backbone.init_std is None else backbone.init_std
    sizes = {"vocab_size": task.vocab_size, "max_length": task.seq_len, "head": head, "init_std": init_std}
    return RackSpec.model_validate({**backbone.to_dict(), **sizes})


@dataclass(frozen=True)
class Data:
    """The splits of one setting and seed, on the device."""

    train: EpochBatches
    validation: EpochBatches
    test: EpochBatches

    @classmethod
    def of(cls, spec: TrialSpec, seed: int, folder: Path | None) -> Data:
        """Draw the splits of a trial's setting, or read them from the folder."""
        device = resolve_device(spec.train.device)
        task, setting = spec.setting.instance(), spec.setting
        sizes: dict[Split, int] = {"train": setting.n_train, "validation": setting.n_validation, "test": setting.n_test}

        def batches(split: Split) -> EpochBatches:
            examples = examples_of(task, sizes[split], seed, split, folder)
            return EpochBatches(examples, spec.batch_size, seed=seed, device=device)

        return cls(batches("train"), batches("validation"), batches("test"))


@lru_cache(maxsize=6)
def examples_of(task: Task, n_examples: int, seed: int, split: Split, folder: Path | None) -> Examples:
    """The instances of one split; the last few are kept, since the trials of a grid follow each other on the same data."""
    if folder is None:
        return draw(task, n_examples, seed=seed, split=split)
    return cached(task, n_examples, seed=seed, split=split, folder=folder)


def in_order(data: Sequence[Data], split: Split) -> Iterator[Batch]:
    """The evaluation batches of a pack: shared, or one a member along a leading dimension."""
    distinct = list({id(single): single for single in data}.values())
    if len(distinct) == 1:
        yield from getattr(distinct[0], split).in_order()
        return
    for batches in zip(*(getattr(single, split).in_order() for single in data), strict=True):
        inputs, targets = zip(*batches, strict=True)
        yield torch.stack(inputs), torch.stack(targets)


MakeModel = Callable[[Trial], nn.Module]


def run_trials(
    trials: Sequence[Trial],
    *,
    make_model: MakeModel | None = None,
    folder: Path | None = None,
    data_folder: Path | None = None,
    on_evaluation: Callable[[Trial, dict[str, float]], None] | None = None,
    save_weights: bool = False,
) -> list[Row]:
    """Train trials that differ in learning rate, weight decay and seed alone, and score each with its best weights.

    Args:
        trials: one, or several to be packed.
        make_model: instead of the trials' racks; called under the trial's seed.
        folder: where the unfinished run is checkpointed (and weights are kept, if asked for).
        data_folder: where data sets are kept between runs; drawn anew each time if None, which is usually as fast.
        on_evaluation: called after every epoch, for each trial still running.
        save_weights: leave `<key>.weights.safetensors` with `best.*` and `last.*` in the folder.

    Returns:
        One row a trial: labels, status, test and training metrics, steps, seconds, sizes, versions.
    """
    spec = trials[0].spec
    data = {seed: Data.of(spec, seed, data_folder) for seed in {trial.spec.seed for trial in trials}}
    members = [_member(trial, data[trial.spec.seed], make_model) for trial in trials]
    trial_of = {id(member): trial for member, trial in zip(members, trials, strict=True)}
    held_out: Split = "test" if spec.mode == "mad" else "validation"

    def evaluate(pack: Pack, running: Sequence[Member], split: Split = held_out) -> dict[str, Tensor]:
        return metrics.evaluate(pack, in_order([data[trial_of[id(member)].spec.seed] for member in running], split))

    def report(member: Member, row: dict[str, float]) -> None:
        if on_evaluation is not None:
            on_evaluation(trial_of[id(member)], row)

    keys = [trial.spec.fingerprint() for trial in trials]
    name = keys[0] if len(keys) == 1 else hashlib.sha256("".join(keys).encode()).hexdigest()[:12]
    checkpoint_path = folder / f"{name}.checkpoint.safetensors" if folder is not None else None
    train(
        members,
        spec.train,
        n_steps=spec.n_steps,
        eval_every=spec.steps_per_epoch,
        evaluate=evaluate,
        seed=spec.seed,
        on_evaluation=report,
        checkpoint_path=checkpoint_path,
    )
    if save_weights and folder is not None:
        for key, member in zip(keys, members, strict=True):
            last = {f"last.{name}": tensor for name, tensor in checkpoint.weights(member.model).items()}
            best = {f"best.{name}": tensor for name, tensor in member.best_weights.items()}
            checkpoint.save(folder / f"{key}.weights.safetensors", best | last, {"step": member.step, "best": member.best})
    rows = _rows(trials, members, evaluate)
    if checkpoint_path is not None:
        checkpoint_path.unlink(missing_ok=True)
    return rows


def _member(trial: Trial, data: Data, make_model: MakeModel | None) -> Member:
    spec = trial.spec
    if make_model is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model = make_model(trial)
    else:
        assert spec.rack is not None  # either the spec describes the model or the caller makes it
        model = spec.rack.build(spec.seed)
    return Member(model.to(data.train.inputs.device), data.train, spec.lr, spec.weight_decay)


def _rows(trials: Sequence[Trial], members: Sequence[Member], evaluate: Callable[..., dict[str, Tensor]]) -> list[Row]:
    """Score every trial that has weights to score; a diverged one may have none, and its metrics are then null."""
    scored = [member for member in members if member.best_weights]
    for member in scored:
        checkpoint.load_weights(member.model, member.best_weights)
        member.model.eval()
    results: dict[int, Row] = {id(member): {} for member in scored}
    for split in ("test", "train"):
        device = next(members[0].model.parameters()).device
        with torch.no_grad(), autocast(device, trials[0].spec.train.precision):
            found = evaluate(Pack([member.model for member in scored]), scored, split) if scored else {}
        for name, values in found.items():
            for member, value in zip(scored, values.tolist(), strict=True):
                results[id(member)][f"{split}_{name}"] = value
    environment = {"torch": str(torch.__version__), "python": platform.python_version(), "hardware": hardware()}
    return [
        {
            **trial.labels(),
            "status": member.status,
            "error": None,
            **{f"{split}_{name}": None for split in ("test", "train") for name in metrics.NAMES},
            **results.get(id(member), {}),
            "held_out_accuracy": member.best.get("accuracy"),
            "held_out_loss": member.best.get("loss"),
            "steps": member.step,
            "best_step": member.best.get("step"),
            "seconds": round(member.seconds, 3),
            "n_parameters": sum(parameter.numel() for parameter in member.model.parameters()),
            "n_packed": len(trials),
            **environment,
            "history": member.history,
        }
        for trial, member in zip(trials, members, strict=True)
    ]
