"""Growing the rack of a builder on what a data loader yields, stage by stage, on the loop and the stages of the job.

>>> import torch
>>> from configs import StackWiseConfig
>>> from search.progressive_rack_builder import ProgressiveRackBuilder
>>> config = StackWiseConfig.from_dict({
...     "model": {"vocab_size": 60, "d_model": 32, "d_ff": 64, "n_heads": 2, "architecture": {"blocks_per_stack": 1}},
...     "training": {"max_steps": 8, "batch_size": 8, "device": "cpu", "progressive": {"trunk_strategy": "frozen"}},
... })
>>> config.training.progressive.cache_mode = "memory"
>>> builder = ProgressiveRackBuilder(config=config)
>>> dataloader = torch.randint(0, 59, (4, 8, 16))  # four batches of 8 rows
>>> trainer = ProgressiveTrainer(config, say=lambda line: None)
>>> results = trainer.train_rack(builder, dataloader, target_stacks=3)
>>> [row["stacks"] for row in results["stages"]], results["stages"][-1]["trunk_forwards"], len(builder.build_rack().stacks)
([1, 2, 3], 0, 3)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import PositiveInt

from configs import StackWiseConfig
from configs.load import validate
from models.architecture_helpers import stack_spec
from models.growth import stack_uids
from search.loader_samples import loader_samples
from search.parallel import Ranks
from search.progress import make_console
from search.progressive.plan import Stage, next_stage, with_time
from search.progressive.report import Say
from search.progressive.spec import GrowthDataSpec, ProgressiveSpec
from search.progressive.stage import Place, StageRun, Start
from search.progressive.weights import save_stage, stage_folder
from search.progressive_rack_builder import ProgressiveRackBuilder
from search.results import Row
from tasks.samples import ArraySamples

N_EVALUATIONS = 10
EVALUATED_BATCHES = 4


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


class ProgressiveTrainer:
    """Grows racks as a configuration says, which may be changed until they are trained.

    Args:
        config: the configuration, or one in plain values.
        out: where the rack of each stage is left, as the job leaves it; None keeps nothing but what the builder has.
        say: takes lines for people; None prints them.

    Raises:
        ConfigError: where the configuration is wrong: here, or when it is used.
    """

    def __init__(
        self, config: StackWiseConfig | Mapping[str, Any], *, out: str | Path | None = None, say: Say | None = None
    ) -> None:
        self.config = StackWiseConfig.from_dict(config) if isinstance(config, Mapping) else config
        self.config.validate()
        self._out = None if out is None else Path(out)
        self._say = say or partial(make_console().print, markup=False)

    def train_rack(
        self, rack_builder: ProgressiveRackBuilder, dataloader: Iterable[Any], target_stacks: int | None = None
    ) -> dict[str, Any]:
        """Train what the builder has, then add stacks and train each, until there are `target_stacks`.

        What a builder has that was trained here before is not trained once more: it is the trunk of the next stack. Without a
        target, and where growth is not enabled, the whole rack trains at once.

        Args:
            rack_builder: its rack is grown in place; one without stacks gets its first.
            dataloader: yields tokens, pairs of tokens and targets, or mappings, as `tasks.loaded.as_sequences` reads them.
            target_stacks: how many there are at last, those that are there included.

        Returns:
            `stages`, a row each with losses before growth, after it and after training, steps, times, bytes, and all training
            losses under `losses`; `history`, the training losses of each stage by the uid of its new stack; `loss`, the last one
            on held-out samples (on samples of the loader itself: it has no others); `status`.
        """
        self.config.validate()
        samples = loader_samples(dataloader, self.config.data, vocab_size=self.config.model.vocab_size)
        if not rack_builder.current_stacks:
            rack_builder.add_stack()
        spec = self._spec(rack_builder, samples, target_stacks)
        folder: AbstractContextManager[Any] = nullcontext(self._out) if self._out is not None else TemporaryDirectory()
        with folder as out:
            rows = self._stages(spec, rack_builder, samples, Path(out))
        last = rows[-1] if rows else {}
        return {
            "stages": rows,
            "history": {row["uid"]: row["losses"] for row in rows},
            "loss": last.get("loss"),
            "status": last.get("status", "finished"),
        }

    train_progressively = train_rack

    def _stages(self, spec: ProgressiveSpec, builder: ProgressiveRackBuilder, samples: ArraySamples, out: Path) -> list[Row]:
        rows: list[Row] = []
        stage, start = self._first(spec, builder), Start(builder.build_rack())
        if builder.trained >= set(builder.born) and spec.growth.enabled:
            if spec.n_stages == 1:
                return rows
            stage = next_stage(spec, stage)
        while True:
            place = Place(folder=stage_folder(out, stage.index), caches=out / "caches", ranks=Ranks(), say=self._say)
            ended = StageRun(spec, stage, samples, start, place).train()
            assert ended is not None  # nothing asks it to stop
            rows.append(ended.row)
            start = ended.start
            builder.adopt(start.rack, stage.rack, stage.born)
            builder.trained |= set(builder.born)
            if self._out is not None:
                save_stage(place.folder, stage, start.rack)
            if ended.row["status"] == "diverged" or stage.index + 1 == spec.n_stages:
                return rows
            stage = next_stage(spec, stage)

    def _first(self, spec: ProgressiveSpec, builder: ProgressiveRackBuilder) -> Stage:
        """The stage of the stacks that are there."""
        rack, born = with_time(spec, builder.spec), builder.born
        return Stage(0, "first", rack, builder.spec, born, max(stack_uids(rack)), spec.steps_of(0))

    def _spec(self, builder: ProgressiveRackBuilder, samples: ArraySamples, target_stacks: int | None) -> ProgressiveSpec:
        training, rack = self.config.training, builder.spec
        is_grown = training.progressive.enabled and training.strategy == "progressive" and target_stacks is not None
        growth = builder.growth.to_dict()
        target = target_stacks if is_grown else builder.current_stacks
        objective = training.progressive.objective()
        if objective["kind"] == "mlm" and objective["mask_token_id"] is None:
            objective["mask_token_id"] = rack.vocab_size - 1  # the last token that the rack knows
        n_rows = min(training.batch_size, samples.n_samples("validation"))
        whole = training.end_to_end_scope if training.strategy == "end_to_end" else training.training_architecture
        scale = (training.current_block_lr or training.learning_rate) / training.learning_rate
        added = stack_spec(self.config.model, 0)
        tree = {
            "rack": {**rack.to_dict(), "time": None},
            "data": {"vocab_size": rack.vocab_size, "seq_len": samples.seq_len, "batch_size": training.batch_size},
            "objective": objective,
            "growth": {**growth, "enabled": is_grown, "target_stacks": target},
            "stack": {**added.to_dict(), "uid": None, "lr_scale": scale},
            "training_architecture": "rackwise" if is_grown else whole,
            "local_loss": training.local_loss,
            "n_steps": training.max_steps,
            "lr": training.learning_rate,
            "weight_decay": training.weight_decay,
            "train": {"device": training.device, "grad_clip": training.grad_clip},
            "eval_every": max(1, training.max_steps // N_EVALUATIONS),
            "eval_batch_size": n_rows,
            "n_eval_batches": min(EVALUATED_BATCHES, samples.n_samples("validation") // n_rows),
            "seed": training.seed,
            "checkpoint_every": training.save_interval,
        }
        return validate(LoadedSpec, tree, "training")
