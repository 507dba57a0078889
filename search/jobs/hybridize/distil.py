"""Distils placements of a trained model's space: each a rack that is drawn to the model, then measured on test data."""

import math
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from configs.records import Row, kept_json, write_json
from models import Placement, Rack, RackSpec, Supernet, placement_text
from models.assembly.assemble import without_memory
from search.evaluation.reference import KeptLogits, Reference, main_of
from search.jobs.backend import Backend
from search.jobs.hybridize.lora import with_lora
from search.jobs.hybridize.spec import CHANGED_LAYERS, HybridizeSpec
from search.jobs.hybridize.start import START, changed_blocks
from search.jobs.pipeline.retrain import run_name
from search.jobs.placement.evaluation import thinned
from search.jobs.supernet.memory import forecast
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.report import Say
from search.runs.run_folder import BESIDE, WEIGHTS
from search.training.batches import Batch
from search.training.devices import autocast, resolve_device
from search.training.memory import give_back
from search.training.mixture import Mixture
from tasks import IGNORED

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


class Measurement:
    """Measures racks on the test data of a conversion, or on those of its search (`validation`), against the model.

    Nothing is loaded until it is needed.
    """

    def __init__(self, spec: HybridizeSpec, out: Path, say: Say, split: Literal["test", "validation"] = "test") -> None:
        self.spec, self.out, self.say, self.split = spec, out, say, split
        distil, search = spec.distil, spec.search
        sizes = {"test": (distil.n_test_batches, distil.test_batch_size), "validation": (search.n_batches, search.batch_size)}
        self.n_batches, self.batch_size = sizes[split]
        self.device = resolve_device(spec.distil.train.device)
        self._reference: Reference | None = None
        self._batches: list[Batch] = []
        self._supernets: dict[Path, Supernet] = {}

    def of_folder(self, folder: Path) -> dict[str, float]:
        """KL to the model and loss of a distilled rack, kept beside its weights."""
        key = self._key(folder)
        kept = kept_json(folder / f"{self.split}.json", self.say, fingerprint=key)
        if kept is not None:
            return {name: kept[name] for name in ("kl", "loss")}
        rack = load_supernet(folder, self.device)
        assert isinstance(rack, Rack)  # it has been placed
        found = self.of(rack)
        if all(map(math.isfinite, found.values())):  # JSON has no other numbers
            write_json(folder / f"{self.split}.json", {"fingerprint": key, **found})
        return found

    def of_placement(self, source: Path, placement: Placement) -> dict[str, float]:
        """The same of a placement of the supernet in a folder, as it is there; kept beside that one's weights."""
        path, text = source / f"{self.split}.json", placement_text(placement)
        kept = kept_json(path, self.say, fingerprint=self._key(source)) or {"fingerprint": self._key(source)}
        if text not in kept:
            kept[text] = self._of_active(self._loaded(source), placement)
            if all(map(math.isfinite, kept[text].values())):
                write_json(path, kept)
        found: dict[str, float] = kept[text]
        return found

    def of_model(self) -> dict[str, float]:
        """Loss of the trained model itself; its KL is 0."""
        model = self._loaded(self.out / START)
        return self._of_active(model, model.main)

    def _of_active(self, supernet: Supernet, placement: Placement) -> dict[str, float]:
        self._prepared()  # which activates the model
        supernet.eval()
        supernet.activate(placement)
        return self.of(supernet.rack)

    def _loaded(self, folder: Path) -> Supernet:
        """The supernet in a folder, read once."""
        if folder not in self._supernets:
            supernet = load_supernet(folder, self.device)
            assert isinstance(supernet, Supernet)  # it has choices
            self._supernets[folder] = supernet
        return self._supernets[folder]

    @torch.no_grad()
    def of(self, rack: Rack) -> dict[str, float]:
        """Means over the asked positions of all batches, in nats."""
        reference, batches = self._prepared()
        kl = loss = 0.0
        n_asked = 0
        for inputs, targets in batches:
            asked = targets != IGNORED
            with autocast(self.device, self.spec.distil.train.precision):
                logits = rack.read_out(rack.run(rack.embed(inputs))[asked][None])[0]
            ours, theirs = (_log_probabilities(each) for each in (logits, reference(inputs, asked)))
            kl += float((theirs.exp() * (theirs - ours)).sum(-1).double().sum())
            loss -= float(ours.gather(1, targets[asked][:, None]).double().sum())
            n_asked += int(asked.sum())
        return {"kl": kl / n_asked, "loss": loss / n_asked}

    def _prepared(self) -> tuple[Reference, list[Batch]]:
        if self._reference is None:
            mixture = Mixture(self.spec.data, seed=self.spec.seed, device=self.device)
            drawn = mixture.evaluation(self.n_batches, self.batch_size, self.split)
            self._batches = [batch for own in thinned(drawn, self.spec.search.positions_per_row).values() for batch in own]
            with torch.no_grad(), autocast(self.device, self.spec.distil.train.precision):
                kept = KeptLogits.of(main_of(self._loaded(self.out / START)), self._batches, 2**62)
            assert kept is not None  # there is no limit
            self._reference = kept
        return self._reference, self._batches

    def _key(self, folder: Path) -> str:
        computed = (self.device.type, self.spec.distil.train.precision)
        asked = (folder.name, self.n_batches, self.batch_size, self.spec.search.positions_per_row, self.spec.seed, *computed)
        return "-".join(map(str, asked))


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
        self._tell(list(runs.values()), [self.out / DISTILLED / name for name in names.values()])
        summaries = backend.train_racks({names[pair]: run for pair, run in runs.items()}, self.out / DISTILLED, self.spec.distil)
        shutil.rmtree(self.out / TEACHER, ignore_errors=True)  # all have learned from it
        give_back()
        found = {}
        for placement in chosen:
            own = [names[placement, seed] for seed in self.spec.distil.seeds if (placement, seed) in names]
            found[placement] = self._measured(placement, own, summaries, measurement)
        return found

    def _tell(self, runs: Sequence[SupernetSpec], folders: Sequence[Path]) -> None:
        """How much learns, and what that takes, where most does; of what is trained already there is nothing to say."""
        if all((folder / WEIGHTS).exists() for folder in folders):
            return
        counts = {id(run): _n_trained(run) for run in runs}
        largest = max(runs, key=lambda run: counts[id(run)])
        n_all = sum(each.numel() for each in without_memory(largest.rack).parameters())
        self.say(f"each rack learns at most {counts[id(largest)]:,} of {n_all:,} parameters")
        self.say(f"memory of a worker, forecast: {forecast(largest, self.space).text()}, and what Python and torch take")

    def run_spec(self, placement: Placement, seed: int, **changes: Any) -> SupernetSpec | None:
        """The training of one placement, with changes of its keys; None if nothing of it trains."""
        distil, placed = self.spec.distil, self.space.place(placement)
        names = [name for name, _ in without_memory(placed).named_parameters()]
        changed = changed_blocks(self.space, placement)
        globs = [glob.replace(CHANGED_LAYERS, block) for glob in distil.trains for block in changed]
        # A layer that goes without a mixer has nothing that could train.
        trains = [glob for glob in dict.fromkeys(globs) if any(fnmatchcase(name, glob) for name in names)]
        if not trains:
            return None
        if distil.lora is not None:
            placed, trains = with_lora(placed, distil.lora, trains)
        given: dict[str, Any] = {
            **{name: getattr(distil, name) for name in ("lr", "weight_decay", "checkpoint_every", "gradient_checkpointing")},
            "seed": self.spec.seed + seed,
            "teacher": self._teacher(),
            "initialise_from": f"{BESIDE}../../{self.source.name}",
            "initial_placement": placement_text(placement),
            "trains": trains,
            "workers": distil.workers.to_dict(),
        }
        return training_spec(self.spec, placed, **(given | changes))

    def _teacher(self) -> dict[str, Any]:
        distil, beside = self.spec.distil, f"{BESIDE}../.."
        teacher = {"source": f"{beside}/{START}", "weight": 1.0, "hidden_weight": distil.hidden_weight}
        return teacher | ({} if distil.keep_logits is None else {"keep": distil.keep_logits, "kept_in": f"{beside}/{TEACHER}"})

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


def _n_trained(run: SupernetSpec) -> int:
    named = without_memory(run.rack).named_parameters()
    return sum(each.numel() for name, each in named if any(fnmatchcase(name, glob) for glob in run.trains or "*"))


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).clamp_(min=-1e30)


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
