"""Runs the stages of a growth one after the other, in this process or as a rank among others, from where the folder stands."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs import ConfigError
from configs.load import validate
from configs.records import read_json, write_json
from configs.trained_model import model_path
from models import StackSpec
from search.activations.folder import remove_store
from search.jobs.imported.trained import model_fingerprint, trained_rack
from search.jobs.progressive.plan import Stage, first_stage, next_stage
from search.jobs.progressive.report import RESULT, stage_rows, write_results
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stage import Ended, StageRun, StageSite, Start
from search.jobs.progressive.training.trunk_cache import TrunkCache
from search.jobs.progressive.weights import finished_folders, load_stage, save_stage, stage_folder
from search.runs.interruption import interruptions
from search.runs.report import Say
from search.runs.run_folder import CHECKPOINT, RESULTS
from search.training import checkpoint
from search.training.devices import resolve_device
from search.training.loop import OnEvaluation
from search.training.ranks import Ranks
from search.training.state import TrainState
from tasks.samples.samples import Samples

MOMENTS, CHOICE = "moments.safetensors", "choice.json"


@dataclass(frozen=True)
class TrainedStage:
    """The newest stage that is done, and what the next one starts from."""

    stage: Stage
    start: Start


def run_stages(
    spec: ProgressiveSpec,
    out: Path,
    say: Say,
    *,
    ranks: Ranks | None = None,
    prepare: Callable[[], object] = lambda: None,
    on_evaluation: OnEvaluation = lambda *_: None,
) -> None:
    """Run the stages that the folder does not hold yet, up to the end or to the first whose stack is still to be chosen.

    Args:
        spec: the run.
        out: its folder, which all ranks share; the main rank writes.
        say: takes the main rank's lines for people.
        ranks: the processes that train together.
        prepare: called once before the first step.
        on_evaluation: called on every rank with the member and its newest row, whose steps count over all stages.

    Raises:
        ConfigError: if data or folder do not fit.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint of the last finished step.
    """
    ranks = ranks or Ranks()
    samples = spec.data.samples(spec.seed)
    prepare()
    ranks.check_same(f"data {samples.fingerprint()}")
    refuse_other_data(out, samples)
    if ranks.is_main and spec.growth.time_interpretation == "depth":
        table = ", ".join(map(str, spec.depth_time().table))
        say(f"time steps of the stacks, as they are created: {table} of {spec.n_time_steps}")
    if ranks.is_main:
        _tidy(out)  # a kill may have come between
    last = newest(spec, out)
    with interruptions() as is_interrupted:
        while _goes_on(spec, out):
            stage, n_before = stage_after(spec, out, last), sum(row["steps"] for row in stage_rows(finished_folders(out)))
            place = StageSite(
                folder=stage_folder(out, stage.index),
                caches=caches(spec, out),
                ranks=ranks,
                say=say,
                is_stopped=is_interrupted,
                on_evaluation=partial(_told_of_run, on_evaluation, n_before),
            )
            run = StageRun(spec, stage, samples, _start(spec, last, ranks), place)
            if ranks.is_main:
                remove_caches(spec, out, but=run.cache)
            ended = run.train()
            if ended is None:
                raise KeyboardInterrupt
            finish(out, stage, ended, ranks)
            last = TrainedStage(stage, ended.start)
            if is_interrupted() and next_index(out) < spec.n_stages:
                raise KeyboardInterrupt
    rows = stage_rows(finished_folders(out))
    if ranks.is_main and (len(rows) == spec.n_stages or rows[-1]["status"] == "diverged"):
        write_results(spec, out, rows, ranks.n_ranks)
        remove_caches(spec, out)
    ranks.check_same("written")


def _start(spec: ProgressiveSpec, last: TrainedStage | None, ranks: Ranks) -> Start | None:
    """What the next stage grows from; ConfigError if the model cannot be read, or is not of the rack that it was."""
    if last is not None or spec.model is None:
        return None if last is None else last.start
    path = model_path(spec.model)
    fingerprint = model_fingerprint(path)
    ranks.check_same(f"model {fingerprint}")
    found, rack = trained_rack(path, resolve_device(spec.train.device))
    if found.model_copy(update={"max_length": spec.rack.max_length}) != spec.rack:
        raise ConfigError(f"rack: is not that of the model {spec.model}: give one of the two")
    return Start(rack.train(), model=fingerprint)


def refuse_other_model(spec: ProgressiveSpec, out: Path) -> None:
    """ConfigError if the run has begun with another model than the one that is in its place now."""
    first = stage_rows(finished_folders(out)[:1])
    if spec.model is None or not first:
        return
    path = model_path(spec.model)
    if path.exists() and first[0]["model"] != model_fingerprint(path):  # one that is gone is not needed any more
        raise ConfigError(f"model: {spec.model}: the model has changed since {out} began; give another out=")


def _told_of_run(on_evaluation: OnEvaluation, n_before: int, member: TrainState, row: dict[str, float]) -> None:
    on_evaluation(member, {**row, "step": n_before + row["step"]})


def _goes_on(spec: ProgressiveSpec, out: Path) -> bool:
    index = next_index(out)
    return index < spec.n_stages and pending_choice(spec, out, index) is None and not has_diverged(out)


def has_diverged(out: Path) -> bool:
    """Whether the newest stage that is done is the last one for that reason."""
    return any(row["status"] == "diverged" for row in stage_rows(finished_folders(out)[-1:]))


def refuse_other_data(out: Path, samples: Samples) -> None:
    """ConfigError if the stages that are done have learnt from other samples."""
    if any(row["data"] != samples.fingerprint() for row in stage_rows(finished_folders(out)[-1:])):
        raise ConfigError(f"{out}: the data have changed since this run began; give another out=")


def newest(spec: ProgressiveSpec, out: Path) -> TrainedStage | None:
    """The newest stage that is done, as the folder holds it; None before the first."""
    folders = finished_folders(out)
    if not folders:
        return None
    device = resolve_device(spec.train.device)
    stage, rack = load_stage(folders[-1], device)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in checkpoint.read(folders[-1] / MOMENTS, device)[0].items():
        parameter, _, moment = name.rpartition("|")
        moments.setdefault(parameter, {})[moment] = tensor
    by_parameter = {parameter: moments[name] for name, parameter in rack.named_parameters() if name in moments}
    return TrainedStage(stage, Start(rack, by_parameter))


def next_index(out: Path) -> int:
    """The number of the stage that comes next."""
    return len(finished_folders(out))


def stage_after(spec: ProgressiveSpec, out: Path, last: TrainedStage | None) -> Stage:
    """The stage that comes next, with the stack that was chosen for it."""
    if last is None:
        return first_stage(spec)
    path = stage_folder(out, last.stage.index + 1) / CHOICE
    chosen = validate(StackSpec, read_json(path)["stack"], str(path)) if path.exists() else None
    return next_stage(spec, last.stage, chosen)


def pending_choice(spec: ProgressiveSpec, out: Path, index: int) -> int | None:
    """The stage's own number, if its stack is still to be chosen among candidates; else None."""
    is_grown = 0 < index < spec.n_stages - bool(spec.growth.joint_tuning_steps)
    is_chosen = (stage_folder(out, index) / CHOICE).exists() or has_diverged(out)
    return index if spec.chooses and is_grown and not is_chosen else None


def finish(out: Path, stage: Stage, ended: Ended, ranks: Ranks) -> None:
    """Write what a stage leaves, its row last: from then on it is done."""
    folder = stage_folder(out, stage.index)
    if ranks.is_main:
        row: dict[str, Any] = ended.row
        save_stage(folder, stage, ended)
        named, known = ended.start.rack.named_parameters(), ended.start.moments
        moments = {f"{name}|{key}": tensor for name, each in named for key, tensor in known.get(each, {}).items()}
        checkpoint.save(folder / MOMENTS, moments, {"fingerprint": row["fingerprint"], "index": stage.index})
        path = folder / CHOICE
        if path.exists():
            choice = read_json(path)
            row = row | {"chosen": choice["name"], "candidates": choice["candidates"]}
        write_json(folder / RESULT, row)
        _tidy(out)
    ranks.check_same(f"stage {stage.index} written")


def remove_caches(spec: ProgressiveSpec, out: Path, *, but: TrunkCache | None = None) -> None:
    """Give back what caches of this run take up; those in a folder of the user's stay."""
    if spec.growth.cache_dir is not None:
        return
    folder = caches(spec, out)
    for each in folder.glob("*"):
        if but is None or each != but.folder:
            remove_store(each)
    with contextlib.suppress(OSError):  # one is still there, or something else
        folder.rmdir()


def _tidy(out: Path) -> None:
    """Remove what nothing goes on from any more."""
    folders = finished_folders(out)
    for path in (*(folder / CHECKPOINT for folder in folders), *(folder / MOMENTS for folder in folders[:-1])):
        path.unlink(missing_ok=True)


def caches(spec: ProgressiveSpec, out: Path) -> Path:
    """Where the activation caches of a run lie."""
    return out / "caches" if spec.growth.cache_dir is None else Path(spec.growth.cache_dir)


def is_finished(out: Path) -> bool:
    """Whether the run in a folder has come to its end."""
    return (out / RESULTS).exists()
