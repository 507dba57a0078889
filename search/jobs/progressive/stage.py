"""One stage of growth: the rack it starts from, its training on the one loop, and what it leaves."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from configs import ConfigError
from configs.records import Row, write_rows
from models import Rack
from models.assembly.quantise import memory_bytes
from models.growth.grow import grow
from models.growth.new_stack import capped_notes
from search.jobs.progressive.idle_adapters import idle_notes
from search.jobs.progressive.plan import Stage
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stage_settings import is_plateau, stage_time, train_spec
from search.jobs.progressive.training.batches import GrowthBatch, GrowthBatches
from search.jobs.progressive.training.evaluation import StageEvaluation, n_trained
from search.jobs.progressive.training.gradients import GrowthStep
from search.jobs.progressive.training.growing_model import GrowingRack, is_causal, needs_attention_mask
from search.jobs.progressive.training.measure import Measured
from search.jobs.progressive.training.trunk_cache import TrunkCache
from search.runs.report import HISTORY, Report, Say
from search.runs.run_folder import CHECKPOINT
from search.training.checkpoint import Checkpoint
from search.training.devices import resolve_device
from search.training.local_losses.model import LocalUnits
from search.training.local_losses.step import LocalLosses
from search.training.local_losses.units import UnitKind
from search.training.loop import Gradients, OnEvaluation, train
from search.training.memory import PeakMemory
from search.training.ranks import Ranks
from search.training.state import TrainState
from tasks.samples.samples import Samples

ParameterMoments = dict[nn.Parameter, dict[str, Tensor]]


@dataclass
class Start:
    """What a stage grows from: the rack of the stage before, what the optimizer knew of its parameters, and its cache.

    The stage makes the rack its own, and lets go of the cache when it has filled its own. `model` is the fingerprint of the
    trained model that the rack is, before the first stage of a run that grows on one.
    """

    rack: Rack
    moments: ParameterMoments = field(default_factory=dict)
    cache: TrunkCache | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageSite:
    """Where a stage runs: its folder, the folder of caches, the processes that train together, and who is told.

    `is_stopped` is asked after every step whether the run is to end there.
    """

    folder: Path
    caches: Path
    ranks: Ranks
    say: Say
    is_stopped: Callable[[], bool] = lambda: False
    on_evaluation: OnEvaluation = lambda *_: None


@dataclass(frozen=True)
class Ended:
    """A stage that has run to its end: the row of the table, its history, and what the next one starts from."""

    row: Row
    history: Sequence[Row]
    start: Start


class StageRun:
    """A stage, ready to train: a function of the seed, of the rack that it starts from, and of the samples, whoever runs it.

    Args:
        spec: the run.
        stage: which of its stages.
        samples: what it learns from.
        start: what it grows from; None for a first stage that is not a model.
        place: where it runs.

    Raises:
        ConfigError: if the cache would be too large, or what the stage needs is not there.
    """

    def __init__(self, spec: ProgressiveSpec, stage: Stage, samples: Samples, start: Start | None, place: StageSite) -> None:
        self.spec, self.stage, self.samples, self.place = spec, stage, samples, place
        self.device = resolve_device(spec.train.device)
        self.evaluation = StageEvaluation(self._batches().evaluation(spec.n_eval_batches, spec.eval_batch_size), spec)
        self.model_fingerprint = None if start is None else start.model
        self.losses = {"loss_before": None if start is None else self._loss(start.rack)}
        rack = stage.rack.build(spec.seed) if start is None else self._grown(start.rack)
        self.model = self._growing(rack.to(self.device))
        self.losses["loss_grown"] = float(self.evaluation.score(self.model)["loss"])
        self._tell_notes()
        is_cached = spec.growth.cache_activations is not False and self.model.frontier > 0 and self._batches().is_cacheable
        self.batches = self._batches(n_variants=spec.growth.cache_variants if is_cached else None)
        self.cache = self._filled_cache(start) if is_cached else None
        if start is not None:
            start.cache = None
        self.evaluation.keep_frontier(self.model)
        self.member = TrainState(self.model, self.batches, spec.lr, spec.weight_decay, keeps_best=False, keeps_moments=True)
        if start is not None:
            named = self.model.named_parameters()
            self.member.moments = {name: start.moments[each] for name, each in named if each in start.moments}
        self.member.data = self._fingerprints()
        name = f"stage {stage.index + 1} of {spec.n_stages}: "
        self._report = Report(place.folder, stage.n_steps, place.say, is_main=place.ranks.is_main, name=name)
        self._peak = PeakMemory(self.device)
        self._measured = Measured(self._gradients(), self.member, self._counts)

    def train(self) -> Ended | None:
        """Train to the end, or go on from a checkpoint; None if it was stopped, with a checkpoint of the last finished step.

        A stage without steps is what it starts from, measured.

        Raises:
            ConfigError: if the data are others than when the stage began.
        """
        spec, stage, place = self.spec, self.stage, self.place
        if stage.n_steps == 0:
            return self._taken()
        if self.cache is not None:
            self.cache.start_counting()
        train(
            [self.member],
            train_spec(spec, stage),
            n_steps=stage.n_steps,
            eval_every=min(spec.eval_every, stage.n_steps),
            evaluate=self.evaluation,
            gradients=self._measured,
            seed=spec.seed * 1009 + stage.index + (place.ranks.rank << 32),  # ranks have other rows, and drop out other units
            on_evaluation=self._evaluated,
            on_step=self._stepped,
            checkpoint=self._checkpoint(),
            checkpoint_every=spec.checkpoint_every,
            ranks=place.ranks,
        )
        if self.member.status == "running":
            return None
        self._check_data()
        named, known = self.model.named_parameters(), self.member.moments
        return Ended(
            self._row(),
            self.member.history,
            Start(self.model.rack, {parameter: known[name] for name, parameter in named if name in known}, self.cache),
        )

    def _taken(self) -> Ended:
        """A trained model, as it is."""
        member = self.member
        row = {name: float(value) for name, value in self.evaluation.score(self.model).items()}
        member.history, member.status, member.cache_counts = (
            [{"step": 0, **row, "train_loss": math.nan}],
            "finished",
            self._counts(),
        )
        if self.place.ranks.is_main:
            write_rows(self.place.folder / HISTORY, member.history)
        self._report.say(f"the model is taken as it is, and not trained: held-out loss {row['loss']:.4f}")
        return Ended(self._row(), member.history, Start(self.model.rack))

    def _checkpoint(self) -> Checkpoint:
        name = f"{self.spec.fingerprint()}, stage {self.stage.index + 1}, {self.stage.rack.fingerprint()}"
        return Checkpoint(self.place.folder / CHECKPOINT, name, self._report.say)

    def _stepped(self, step: int) -> bool:
        self._check_data()  # what the checkpoint holds is known now
        self._measured.tick()
        self._report.stepped(step)
        if self.place.is_stopped():
            self.place.ranks.stop()
        return not self.place.ranks.is_stopping

    def _evaluated(self, member: TrainState, row: dict[str, float]) -> None:
        if member.status == "running" and is_plateau([each["loss"] for each in member.history], self.spec):
            member.status = "stopped"
        self._report.evaluated(member, row)
        self.place.on_evaluation(member, row)

    def _check_data(self) -> None:
        if self.member.data != self._fingerprints():
            text = "the data have changed since this stage began; delete the folder to begin it anew, or give another out="
            raise ConfigError(f"{self.place.folder}: {text}")

    def _fingerprints(self) -> dict[str, str]:
        return {"samples": self.batches.fingerprint()}

    def _batches(self, n_variants: int | None = None) -> GrowthBatches:
        spec, ranks = self.spec, self.place.ranks
        return GrowthBatches(
            self.samples,
            spec.make_objective(),
            stage=self.stage.index,
            time=stage_time(spec, self.stage),
            batch_size=spec.data.batch_size,
            seed=spec.seed,
            device=self.device,
            rank=ranks.rank,
            n_ranks=ranks.n_ranks,
            n_variants=n_variants,
        )

    def _grown(self, rack: Rack) -> Rack:
        assert self.stage.before is not None  # of a stage that starts from another one
        return grow(rack, self.stage.before, self.stage.rack, seed=self.spec.seed, init=self.spec.growth.init)

    def _growing(self, rack: Rack) -> GrowingRack:
        rack.set_checkpointing(enabled=self.spec.growth.gradient_checkpointing)
        model = GrowingRack(
            rack, uses_attention_mask=needs_attention_mask(rack, self.samples), has_trunk=self.stage.kind == "grow"
        )
        if self.spec.training_architecture != "rackwise" and self.stage.kind != "joint":
            unit: UnitKind = "stack" if self.spec.training_architecture == "stackwise" else "block"
            model.units = LocalUnits(rack, self.spec.local_loss, unit=unit, seed=self.spec.seed)
        return model

    def _loss(self, rack: Rack) -> float:
        return float(self.evaluation.score(self._growing(rack.to(self.device)))["loss"])

    def _tell_notes(self) -> None:
        """Pass on what the objective has to say of the stacks, and what is slow here."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.spec.make_objective().check_stacks([is_causal(stack) for stack in self.model.rack.stacks])
        notes = [str(each.message) for each in told]
        if self.device.type == "cpu" and any(stack.precision == "half" for stack in self.stage.rack.stacks):
            notes.append("precision half is slow on a CPU; bfloat16 is not")
        if self.spec.growth.cache_activations is not False and self.stage.kind == "grow" and not self.model.frontier:
            below = "nothing but the embedding" if self.stage.position == 0 else "what moves at every step"
            notes.append(f"nothing is cached: below the stacks that train stands {below}")
        newest = f"stack {self.stage.uid}:"  # of the others it was told when they were new
        notes += [note for note in capped_notes(self.model.rack, self.stage.rack) if note.startswith(newest)]
        notes += idle_notes(self.spec, self.stage, self.model.rack)
        for note in notes if self.place.ranks.is_main else ():
            self.place.say(f"note: {note}")

    def _filled_cache(self, start: Start | None) -> TrunkCache:
        return TrunkCache(
            self.spec,
            self.model,
            self.stage.rack,
            batches=self.batches,
            folder=self.place.caches,
            n_steps=self.stage.n_steps,
            ranks=self.place.ranks,
            previous=None if start is None else start.cache,
        )

    def _hidden(self, batch: GrowthBatch) -> Tensor | None:
        return None if self.cache is None else self.cache.hidden(batch)

    def _gradients(self) -> Gradients:
        spec, growth, units = self.spec, self.spec.growth, self.model.units
        if units is not None:
            return LocalLosses(
                units,
                n_steps=self.stage.n_steps,
                precision=spec.train.precision,
                ranks=self.place.ranks,
                uses_attention_mask=self.model.uses_attention_mask,
            )
        denoises = growth.prepend_loss == "denoise_mse" and self.stage.kind == "grow"
        # What goes backward through products in float16 is to be large enough, wherever it ends.
        scales_loss = any(stack.precision == "half" for stack in self.stage.rack.stacks[self.model.frontier :])
        return GrowthStep(self.spec, self.place.ranks, self._hidden, denoises=denoises, scales_loss=scales_loss)

    def _counts(self) -> dict[str, int]:
        counts = {} if self.cache is None else self.cache.counts()
        return {**counts, "trunk_forwards": self.model.n_trunk_runs + counts.get("trunk_forwards", 0)}

    def _row(self) -> Row:
        spec, stage, member, rack = self.spec, self.stage, self.member, self.model.rack
        counts = self._measured.totals(self.place.ranks)
        n_rows = counts.get("cache_hits", 0) + counts.get("cache_misses", 0)
        return {
            "fingerprint": spec.fingerprint(),
            "stage": stage.index + 1,
            "kind": stage.kind,
            "uid": stage.uid,
            "position": stage.position,
            "stacks": len(stage.rack.stacks),
            "precision": stage.rack.stacks[stage.position].precision,
            "strategy": spec.growth.trunk_strategy if stage.kind == "grow" else None,
            "status": member.status,
            "steps": member.step,
            "unsupervised_steps": len(member.unsupervised),
            "tokens": member.step * spec.data.batch_size * self.samples.seq_len,
            **self.losses,
            **{name: member.history[-1][name] for name in ("loss", "accuracy", "train_loss")},
            "seconds": round(member.seconds, 3),
            "step_ms": self._measured.step_ms,
            "n_parameters": sum(parameter.numel() for parameter in rack.parameters()),
            "n_trained_parameters": n_trained(rack) if stage.n_steps else 0,
            "weight_bytes": memory_bytes(rack),
            "saved_bytes": member.saved_bytes,
            "peak_bytes": self._peak.bytes(),
            "time_step": stage_time(spec, stage).step if spec.growth.time_interpretation == "depth" else None,
            **({} if self.cache is None else self.cache.told()),
            **counts,
            "cache_hit_rate": counts["cache_hits"] / n_rows if n_rows else None,
            "data": self.batches.fingerprint(),
            **({} if self.model_fingerprint is None else {"model": self.model_fingerprint}),
            "losses": member.losses,
        }
