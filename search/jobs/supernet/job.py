"""The job `supernet`: trains one set of weights for every placement, in this process or as a rank among others."""

import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from configs import ConfigError
from configs.records import read_json, to_json
from models import Supernet
from search.jobs.backend import Backend
from search.jobs.supernet.data_fingerprints import check_data, data_fingerprints
from search.jobs.supernet.evaluation import SupernetEvaluation, sampled_placements
from search.jobs.supernet.kept_teacher import open_teacher
from search.jobs.supernet.report import finished, summary, write_outcome
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.start import start_from_trained
from search.jobs.supernet.step import SupernetStep
from search.jobs.supernet.weights import save_weights
from search.runs.console import make_console
from search.runs.interruption import interruptions
from search.runs.report import Report, Say, diverged_message
from search.runs.run_folder import CHECKPOINT, RESULTS, run_folder
from search.training.checkpoint import Checkpoint
from search.training.devices import resolve_device
from search.training.loop import OnEvaluation, train
from search.training.memory import PeakMemory
from search.training.mixture import Mixture
from search.training.precision import settled
from search.training.ranks import Ranks
from search.training.state import TrainState

Train = Callable[[SupernetSpec, Path, Say], None]


def run(spec: SupernetSpec, out: Path, backend: Backend) -> int:
    """Train what the folder does not hold yet; the exit status is 1 if the run diverged."""
    spec = settled(spec, out, "train", spec.rack, partial(make_console().print, markup=False))
    return 1 if diverged_message(backend.train_supernet(spec, out)) else 0


def train_supernet(spec: SupernetSpec, out: Path, train: Train | None = None, say: Say | None = None) -> dict[str, Any]:
    """Train what the folder does not hold yet; the summary that `results.json` holds.

    Interrupted or killed, the same call goes on where it stopped, to the same history and weights; a run that is finished is
    not trained again. The weights of a run that diverged are left as they are; `diverged_message` of the summary says so.

    Args:
        spec: the run.
        out: its folder; `weights.safetensors`, `history.jsonl` and `results.json` are left there.
        train: trains into the folder until `results.json` is there; None does so in this process.
        say: takes lines for people; None prints them.

    Raises:
        ConfigError: if the folder belongs to another run, or files, teacher or start do not fit.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint of the last finished step.
    """
    say = say or (lambda text: make_console().print(text, markup=False))
    with run_folder(out, spec):
        results = finished(spec, out, say)
        if results is not None:
            say(f"all {spec.n_steps} steps are finished")
        else:
            (train or train_supernet_here)(spec, out, say)
            results = read_json(out / RESULTS)
        if text := diverged_message(results):
            say(text)
        return results


def train_rack(spec: SupernetSpec, out: Path, say: Say = lambda _: None) -> dict[str, Any]:
    """Train a rack without choices, without a word if `say` is not given; the same as `train_supernet` but for that."""
    if spec.rack.slots():
        raise ConfigError("rack: a rack without stochastic parts is expected; place it first")
    return train_supernet(spec, out, say=say)


def train_only(rack: nn.Module, globs: Sequence[str] | None) -> None:
    """Freeze every parameter that none of the globs names; None freezes nothing.

    Raises:
        ConfigError: for a glob that names none, or only what is frozen (lr_scale 0) or stored.
    """
    if globs is None:
        return
    parameters = dict(rack.named_parameters())
    for index, glob in enumerate(globs):
        if not any(fnmatchcase(name, glob) and parameter.requires_grad for name, parameter in parameters.items()):
            raise ConfigError(f"trains[{index}]: no parameter that trains is called {glob}")
    for name, parameter in parameters.items():
        if not any(fnmatchcase(name, glob) for glob in globs):
            parameter.requires_grad = False


def train_supernet_here(
    spec: SupernetSpec,
    out: Path,
    say: Say,
    *,
    ranks: Ranks | None = None,
    prepare: Callable[[nn.Module], object] = lambda _: None,
    on_evaluation: OnEvaluation = lambda *_: None,
) -> None:
    """Train in this process, as one rank among others where torch.distributed is initialised; goes on from a checkpoint.

    Args:
        spec: the run.
        out: its folder, which all ranks share; the main rank writes.
        say: takes the main rank's lines for people.
        ranks: the processes that train together.
        prepare: what is done to the model on its device, before the optimizer is made: its weights are shared out.
        on_evaluation: called on every rank with the member and its newest row.
    """
    ranks = ranks or Ranks()
    device = resolve_device(spec.train.device)
    peak = PeakMemory(device)
    mixture = Mixture(spec.data, seed=spec.seed, device=device, rank=ranks.rank, n_ranks=ranks.n_ranks)
    batches = mixture.evaluation(spec.n_eval_batches, spec.eval_batch_size)
    evaluation = SupernetEvaluation(batches, mixture.shares, sampled_placements(spec))
    model = Supernet(spec.rack, spec.seed).to(device)
    train_only(model.rack, spec.trains)
    model.rack.set_checkpointing(enabled=spec.gradient_checkpointing)
    member = TrainState(model, mixture, spec.lr, spec.weight_decay, keeps_best=False, data=data_fingerprints(mixture))
    report = Report(out, spec.n_steps, say, is_main=ranks.is_main)
    teacher = open_teacher(spec, model, device, out, ranks=ranks, say=report.say)
    kept = Checkpoint(out / CHECKPOINT, spec.fingerprint(), report.say)
    if spec.initialise_from is not None and not kept.is_usable():
        member.origins = start_from_trained(spec, model, evaluation, out, report.say)
    prepare(model)

    def stepped(step: int) -> bool:
        if report.first is None:  # what the checkpoint holds is known now, and nothing is written yet
            check_data(member.data, mixture, kept.path)
        report.stepped(step)
        if is_interrupted():
            ranks.stop()
        return not ranks.is_stopping

    def evaluated(member: TrainState, row: dict[str, float]) -> None:
        report.evaluated(member, row)
        on_evaluation(member, row)

    with interruptions() as is_interrupted:
        train(
            [member],
            spec.train,
            n_steps=spec.n_steps,
            eval_every=spec.eval_every,
            evaluate=evaluation,
            gradients=SupernetStep(spec, ranks, teacher, report.say),
            seed=spec.seed + (ranks.rank << 32),  # ranks have other rows, and drop out other units
            on_evaluation=evaluated,
            on_step=stepped,
            checkpoint=kept,
            checkpoint_every=spec.checkpoint_every,
            ranks=ranks,
        )
    if member.status == "running":
        raise KeyboardInterrupt
    if report.first is None:  # the last step was done before a kill
        check_data(member.data, mixture, kept.path)
    # What JSON has no word for is null in all of it, as it will be read.
    told = summary(spec, member, mixture.fingerprint(batches), n_workers=ranks.n_ranks, peak_bytes=peak.bytes())
    results = json.loads(to_json(told))
    history = json.loads(to_json(member.history))
    state = {"spec": spec.saved(), "fingerprint": spec.fingerprint(), "step": member.step}
    save_weights(out, model, {**state, "results": results, "history": history}, ranks)
    if ranks.is_main:
        write_outcome(out, results, history)
        kept.remove()
