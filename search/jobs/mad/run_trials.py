"""Runs one trial, or several packed: draw the data, train, score with the best weights."""

import hashlib
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.records import Row
from search.jobs.mad.benchmark_data import DataFolders
from search.jobs.mad.data import Data, in_order
from search.jobs.mad.trial import Trial
from search.runs.own_process import Tell
from search.training import checkpoint, metrics
from search.training.checkpoint import Checkpoint
from search.training.devices import autocast, hardware
from search.training.loop import train
from search.training.packing import Pack
from search.training.state import TrainState
from tasks import Split

_LOG = logging.getLogger(__name__)

MakeModel = Callable[[Trial], nn.Module]


def run_trials(
    trials: Sequence[Trial],
    *,
    make_model: MakeModel | None = None,
    folder: Path | None = None,
    data_folders: DataFolders = DataFolders(),  # noqa: B008 - it is frozen
    on_evaluation: Callable[[Trial, dict[str, float]], None] | None = None,
    save_weights: bool = False,
) -> list[Row]:
    """Train trials that differ in learning rate, weight decay and seed alone, and score each with its best weights.

    Args:
        trials: one, or several to be packed.
        make_model: instead of the trials' racks; called under the trial's seed.
        folder: where the unfinished run is checkpointed (and weights are kept, if asked for).
        data_folders: where data sets are kept between runs, or read; else they are drawn each time, which is usually as fast.
        on_evaluation: called after every epoch, for each trial still running.
        save_weights: leave `<key>.weights.safetensors` with `best.*` and `last.*` in the folder.

    Returns:
        One row a trial: labels, status, test and training metrics, steps, seconds, sizes, versions.
    """
    spec = trials[0].spec
    data = {seed: Data.of(spec, seed, data_folders) for seed in {trial.spec.seed for trial in trials}}
    members = [_member(trial, data[trial.spec.seed], make_model) for trial in trials]
    trial_of = {id(member): trial for member, trial in zip(members, trials, strict=True)}
    held_out: Split = "test" if spec.mode == "mad" else "validation"

    def evaluate(pack: Pack, running: Sequence[TrainState], split: Split = held_out) -> dict[str, Tensor]:
        return metrics.evaluate(pack, in_order([data[trial_of[id(member)].spec.seed] for member in running], split))

    def report(member: TrainState, row: dict[str, float]) -> None:
        if on_evaluation is not None:
            on_evaluation(trial_of[id(member)], row)

    train(
        members,
        spec.train,
        n_steps=spec.n_steps,
        eval_every=spec.steps_per_epoch,
        evaluate=evaluate,
        seed=spec.seed,
        on_evaluation=report,
        checkpoint=None if folder is None else checkpoint_of(trials, folder),
    )
    if save_weights and folder is not None:
        _save_weights(trials, members, folder)
    return [row | {"data": data[row["seed"]].fingerprint} for row in _rows(trials, members, evaluate)]


def checkpoint_of(trials: Sequence[Trial], folder: Path) -> Checkpoint:
    """Where a trial or pack under way is kept. Whoever has put its rows into the log removes the file, not before."""
    keys = [trial.spec.fingerprint() for trial in trials]
    name = keys[0] if len(keys) == 1 else hashlib.sha256("".join(keys).encode()).hexdigest()[:12]
    return Checkpoint(folder / f"{name}.checkpoint.safetensors", name, _LOG.warning)


def weights_path(trial: Trial, folder: Path) -> Path:
    """Where the weights of a finished trial are left, if they are asked for."""
    return folder / f"{trial.spec.fingerprint()}.weights.safetensors"


def _save_weights(trials: Sequence[Trial], members: Sequence[TrainState], folder: Path) -> None:
    for trial, member in zip(trials, members, strict=True):
        last = {f"last.{name}": tensor for name, tensor in checkpoint.weights(member.model).items()}
        best = {f"best.{name}": tensor for name, tensor in member.best_weights.items()}
        state = {"fingerprint": trial.spec.fingerprint(), "step": member.step, "best": member.best}
        checkpoint.save(weights_path(trial, folder), best | last, state)


def _member(trial: Trial, data: Data, make_model: MakeModel | None) -> TrainState:
    spec = trial.spec
    if make_model is not None:
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            model = make_model(trial)
    else:
        assert spec.rack is not None  # either the spec describes the model or the caller makes it
        model = spec.rack.build(spec.seed)
    model = model.to(data.train.inputs.device)
    return TrainState(model, data.train, spec.lr, spec.weight_decay, decays_all=spec.mode == "mad")


def _rows(trials: Sequence[Trial], members: Sequence[TrainState], evaluate: Callable[..., dict[str, Tensor]]) -> list[Row]:
    """Score every trial that has weights to score; a diverged one may have none, and its metrics are then null."""
    scored = [member for member in members if member.best_weights]
    for member in scored:
        checkpoint.load_weights(member.model, member.best_weights)
        member.model.eval()
    results: dict[int, Row] = {id(member): {} for member in scored}
    for split in ("test", "train"):
        device = next(members[0].model.parameters()).device
        with torch.no_grad(), autocast(device, trials[0].spec.train.scores_in):
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
            **{f"held_out_{name}": member.best.get(name) for name in ("accuracy", "macro_accuracy", "loss")},
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


def work(trials: Sequence[Trial], options: Mapping[str, Any], tell: Tell) -> list[Row]:
    """`run_trials` as work for another process: it tells evaluations, with the trial's number among these."""
    return run_trials(trials, on_evaluation=lambda trial, row: tell((trials.index(trial), row)), **options)
