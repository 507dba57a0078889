"""Distils placements of a trained model's space: each a rack that is drawn to the model, then measured on test data."""

import math
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from configs.records import Row
from models import Placement, RackSpec, placement_text
from models.assembly.assemble import without_memory
from search.jobs.backend import Backend
from search.jobs.hybridize.lora import with_lora
from search.jobs.hybridize.measurement import Measurement
from search.jobs.hybridize.spec import CHANGED_LAYERS, HybridizeSpec
from search.jobs.hybridize.start import START, changed_blocks
from search.jobs.pipeline.retrain import run_name
from search.jobs.supernet.memory import forecast
from search.jobs.supernet.spec import SupernetSpec
from search.runs.report import Say
from search.runs.run_folder import BESIDE, WEIGHTS
from search.training.memory import give_back

DISTILLED, TEACHER = "racks", "teacher"


@dataclass(frozen=True)
class Distilled:
    """What became of a placement: KL to the model and loss on test data, in nats, a value a seed; or why it failed.

    `folders` are those of its racks, a seed each, within the folder of the run; none, where nothing of it had anything to learn.
    """

    placement: Placement
    folders: tuple[str, ...]
    kl: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float
    error: str | None = None

    @property
    def mean_kl(self) -> float:
        """Over seeds; NaN where one failed."""
        return math.nan if self.error else statistics.fmean(self.kl)

    @property
    def standard_error(self) -> float | None:
        """Of the mean KL over seeds; None with a single one."""
        return None if self.error or len(self.kl) < 2 else statistics.stdev(self.kl) / math.sqrt(len(self.kl))

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss a token; NaN where one failed."""
        return math.nan if self.error else math.exp(statistics.fmean(self.losses))

    def to_dict(self) -> Row:
        """Plain values for JSON."""
        return {
            "kl_distilled": None if self.error else self.mean_kl,
            "kl_distilled_error": self.standard_error,
            "kls": list(self.kl),
            "loss": None if self.error else statistics.fmean(self.losses),
            "perplexity": None if self.error else self.perplexity,
            "folders": list(self.folders),
            "seconds": self.seconds,
            "error": self.error,
        }


def training_spec(spec: HybridizeSpec, space: RackSpec, **given: Any) -> SupernetSpec:
    """A training of the space, or of a rack of it, on the data of the conversion."""
    distil = spec.distil
    base: dict[str, Any] = {
        "rack": space.to_dict(),
        "data": {**spec.data.to_dict(), "batch_size": distil.batch_size},
        "n_steps": distil.n_steps,
        "eval_every": max(1, distil.n_steps // 4),  # a checkpoint, by time, is written after an evaluation
        "n_eval_batches": 1,
        "eval_batch_size": distil.batch_size,
        "n_eval_placements": 0,
        "train": distil.train.to_dict(),
        "seed": spec.seed,
    }
    return SupernetSpec.model_validate({**base, **given})


class Distillation:
    """Distils placements of a space into `out/racks`; each starts from the supernet in `source`, and `out/start` teaches."""

    def __init__(self, spec: HybridizeSpec, space: RackSpec, out: Path, source: Path, say: Say) -> None:
        self.spec, self.space, self.out, self.source, self.say = spec, space, out, source, say

    def run(self, placements: Iterable[Placement], backend: Backend, measurement: Measurement) -> dict[Placement, Distilled]:
        """Distil every placement with every seed, as far as the folders do not hold them yet, and measure them.

        One of which nothing trains (nothing stands where it differs from the model) is measured as it is.
        """
        chosen = list(dict.fromkeys(placements))
        pairs = [(placement, seed) for placement in chosen for seed in self.spec.distil.seeds]
        runs = {pair: run for pair in pairs if (run := self.run_spec(*pair)) is not None}
        names = {pair: run_name(pair[0], run) for pair, run in runs.items()}
        if not all((self.out / DISTILLED / name / WEIGHTS).exists() for name in names.values()):
            self.say(what_it_takes(list(runs.values()), self.space))
        summaries = backend.train_racks({names[pair]: run for pair, run in runs.items()}, self.out / DISTILLED, self.spec.distil)
        shutil.rmtree(self.out / TEACHER, ignore_errors=True)  # all have learned from it
        give_back()
        found = {}
        for placement in chosen:
            own = [names[placement, seed] for seed in self.spec.distil.seeds if (placement, seed) in names]
            found[placement] = self._measured(placement, own, summaries, measurement)
        return found

    def run_spec(self, placement: Placement, seed: int, **changes: Any) -> SupernetSpec | None:
        """The training of one placement, with changes of its keys; None if nothing of it trains."""
        return distillation_spec(
            self.spec, self.space, placement, **{"seed": self.spec.seed + seed, **changes}, source=self.source.name
        )

    def _measured(
        self, placement: Placement, names: list[str], summaries: Mapping[str, Row], measurement: Measurement
    ) -> Distilled:
        folders = [self.out / DISTILLED / name for name in names]
        errors = [str(summaries[name]["error"]) for name in names if summaries[name].get("error")]
        rows = [] if errors else [measurement.of_folder(folder) for folder in folders]
        if not names:
            rows = [measurement.of_placement(self.source, placement)]
        if not all(math.isfinite(row["kl"]) for row in rows):
            errors = ["the KL divergence on test data is no finite number"]
        return Distilled(
            placement,
            folders=tuple(str(folder.relative_to(self.out)) for folder in folders),
            kl=tuple(row["kl"] for row in rows),
            losses=tuple(row["loss"] for row in rows),
            seconds=sum(float(summaries[name].get("seconds") or 0.0) for name in names),
            error=errors[0] if errors else None,
        )


def distillation_spec(
    spec: HybridizeSpec, space: RackSpec, placement: Placement, *, source: str = START, **changes: Any
) -> SupernetSpec | None:
    """The distillation of one placement, with changes of its keys, from a folder of the run; None if nothing of it trains."""
    distil, placed = spec.distil, space.place(placement)
    names = [name for name, _ in without_memory(placed).named_parameters()]
    globs = [glob.replace(CHANGED_LAYERS, block) for glob in distil.trains for block in changed_blocks(space, placement)]
    # A layer that goes without a mixer has nothing that could train.
    trains = [glob for glob in dict.fromkeys(globs) if any(fnmatchcase(name, glob) for name in names)]
    if not trains:
        return None
    if distil.lora is not None:
        placed, trains = with_lora(placed, distil.lora, trains)
    beside = f"{BESIDE}../.."
    teacher: dict[str, Any] = {"source": f"{beside}/{START}", "weight": 1.0, "hidden_weight": distil.hidden_weight}
    if distil.keep_logits is not None:
        teacher |= {"keep": distil.keep_logits, "kept_in": f"{beside}/{TEACHER}"}
    given: dict[str, Any] = {
        **{name: getattr(distil, name) for name in ("lr", "weight_decay", "checkpoint_every", "gradient_checkpointing")},
        "teacher": teacher,
        "initialise_from": f"{beside}/{source}",
        "initial_placement": placement_text(placement),
        "trains": trains,
        "workers": distil.workers.to_dict(),
    }
    return training_spec(spec, placed, **(given | changes))


def what_it_takes(runs: Sequence[SupernetSpec], space: RackSpec) -> str:
    """How much learns in a distillation, and what a worker will hold, where most does."""
    numbers = [_numbers(run) for run in runs]
    (n_trained, n_all), largest = max(zip(numbers, runs, strict=True), key=lambda each: each[0])
    memory = forecast(largest, space).text()
    return (
        f"distillation: at most {n_trained:,} of {n_all:,} parameters learn; "
        f"memory of a worker, forecast: {memory}, and what Python and torch take"
    )


def _numbers(run: SupernetSpec) -> tuple[int, int]:
    """Of the parameters that train, and of all."""
    sizes = {name: parameter.numel() for name, parameter in without_memory(run.rack).named_parameters()}
    trained = (n for name, n in sizes.items() if any(fnmatchcase(name, glob) for glob in run.trains or ("*",)))
    return sum(trained), sum(sizes.values())


def single_effects(space: RackSpec, model: Placement) -> dict[tuple[int, str], Placement]:
    """By slot and name, the model with that one part in the place of its own."""
    return {
        (index, name): (*model[:index], name, *model[index + 1 :])
        for index, slot in enumerate(space.slots())
        for name in slot.names
        if name != slot.main
    }


def ranking(scores: Mapping[tuple[int, str], float], space: RackSpec, metric: str) -> list[Row]:
    """What each part that stands alone in the place of the model's comes to, the best first: KL in nats, or another score."""
    slots = space.slots()
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return [
        {"slot": str(slots[index]), "name": name, **({"kl": -score} if metric == "kl" else {"score": score})}
        for (index, name), score in ranked
    ]
