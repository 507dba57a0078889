"""Racks trained from scratch, one for each placement and seed, and scored on data that nothing was picked by."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs.records import kept_json, write_json
from models import Placement, placement_text
from search.jobs.backend import Backend
from search.jobs.pipeline.spec import RetrainSpec
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.console import make_console
from search.training import metrics
from search.training.devices import autocast, resolve_device
from search.training.mixture import Mixture
from search.training.packing import Pack

_LONGEST_NAME = 80
TEST = "test.json"


@dataclass(frozen=True)
class RetrainedRack:
    """What became of one placement: test loss (nats, tasks by their shares), accuracy by task, a value a seed; or an error.

    `folders` are those of its runs, one a seed, from the folder of the job.
    """

    placement: Placement
    losses: tuple[float, ...]
    accuracies: dict[str, tuple[float, ...]]
    seconds: float
    error: str | None = None
    folders: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """The mean over seeds; NaN where a run failed."""
        return math.nan if self.error else statistics.fmean(self.losses)

    @property
    def standard_error(self) -> float | None:
        """Over seeds; None with a single one."""
        return None if self.error or len(self.losses) < 2 else statistics.stdev(self.losses) / math.sqrt(len(self.losses))


def train_placements(
    base: SupernetSpec, retrain: RetrainSpec, placements: Iterable[Placement], out: Path, backend: Backend
) -> dict[Placement, RetrainedRack]:
    """Train every placement with every seed, as far as `out` does not hold them yet, and test them."""
    runs = {
        (placement, seed): run_spec(base, retrain, placement, seed)
        for placement in dict.fromkeys(placements)
        for seed in retrain.seeds
    }
    names = {key: run_name(key[0], spec) for key, spec in runs.items()}
    summaries = backend.train_racks({names[key]: spec for key, spec in runs.items()}, out, retrain)
    found = {}
    for placement in dict.fromkeys(placement for placement, _ in runs):
        own = {names[placement, seed]: runs[placement, seed] for seed in retrain.seeds}
        found[placement] = _tested(placement, own, {name: summaries[name] for name in own}, retrain, out)
    return found


def run_spec(base: SupernetSpec, retrain: RetrainSpec, placement: Placement, seed: int) -> SupernetSpec:
    """The training of one placement."""
    given = {name: value for name, value in (("n_steps", retrain.n_steps), ("lr", retrain.lr)) if value is not None}
    placed = base.placed(placement).to_dict()
    return SupernetSpec.model_validate({**placed, **given, "seed": seed})


def run_name(placement: Placement, spec: SupernetSpec) -> str:
    """A folder's name that tells placement and seed, and differs where anything else does."""
    text = re.sub(r"\W+", "_", placement_text(placement).replace("*", "x"))
    return f"{text[:_LONGEST_NAME]}-seed{spec.seed}-{spec.fingerprint()}"


def _tested(
    placement: Placement,
    runs: Mapping[str, SupernetSpec],
    summaries: Mapping[str, dict[str, Any]],
    retrain: RetrainSpec,
    out: Path,
) -> RetrainedRack:
    errors = [str(summary["error"]) for summary in summaries.values() if summary.get("error")]
    folders = tuple(f"{out.name}/{name}" for name in runs)
    if errors:
        return RetrainedRack(placement, (), {}, 0.0, errors[0], folders)
    rows = [_test(spec, out / name, retrain) for name, spec in runs.items()]
    for spec, row in zip(runs.values(), rows, strict=True):
        if not math.isfinite(row["loss"]):
            return RetrainedRack(placement, (), {}, 0.0, f"seed {spec.seed}: the test loss is no finite number", folders)
    tasks = next(iter(runs.values())).data.tasks
    return RetrainedRack(
        placement,
        losses=tuple(row["loss"] for row in rows),
        accuracies={task: tuple(row[task] for row in rows) for task in tasks},
        seconds=sum(float(summary["seconds"]) for summary in summaries.values()),
        folders=folders,
    )


def _test(spec: SupernetSpec, folder: Path, retrain: RetrainSpec) -> dict[str, float]:
    """The loss, and each task's accuracy by its name; kept beside the weights, and not measured again."""
    asked = {name: getattr(retrain, name) for name in ("n_test_batches", "test_batch_size")}
    say = partial(make_console().print, markup=False)
    kept = kept_json(folder / TEST, say, fingerprint=spec.fingerprint()) or {}
    if asked.items() <= kept.items():
        return {"loss": kept["loss"], **kept["accuracies"]}
    loss, accuracies = _measured(spec, folder, retrain)
    if math.isfinite(loss):  # JSON has no other numbers
        write_json(folder / TEST, {"fingerprint": spec.fingerprint(), **asked, "loss": loss, "accuracies": accuracies})
    return {"loss": loss, **accuracies}


def _measured(spec: SupernetSpec, folder: Path, retrain: RetrainSpec) -> tuple[float, dict[str, float]]:
    device = resolve_device(spec.train.device)
    model = load_supernet(folder, device)
    mixture = Mixture(spec.data, seed=spec.seed, device=device)
    batches = mixture.evaluation(retrain.n_test_batches, retrain.test_batch_size, "test")
    with torch.no_grad(), autocast(device, spec.train.scores_in):
        found = {task: metrics.evaluate(Pack([model]), own) for task, own in batches.items()}
    accuracies = {task: float(values["accuracy"]) for task, values in found.items()}
    return sum(mixture.shares[task] * float(values["loss"]) for task, values in found.items()), accuracies
