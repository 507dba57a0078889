"""Growing the rack of a builder on what a data loader yields, stage by stage, on the loop and the stages of the job.

>>> import torch
>>> from configs import StackWiseConfig
>>> from search.stackwise.rack_builder import ProgressiveRackBuilder
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

import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from configs import ConfigError, StackWiseConfig
from models.growth.edit_spec import stack_uids
from search.jobs.progressive.plan import Stage, next_stage, with_time
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stage import StageRun, StageSite, Start
from search.jobs.progressive.stages import caches, finish, next_index
from search.jobs.progressive.weights import stage_folder
from search.runs.console import make_console
from search.runs.report import Say
from search.runs.run_folder import CHECKPOINT, Row, run_folder
from search.stackwise import stack_edits
from search.stackwise.growth_spec import grows, loaded_spec
from search.stackwise.loader_samples import loader_samples
from search.stackwise.rack_builder import ProgressiveRackBuilder
from search.training.ranks import Ranks
from tasks.samples.samples import ArraySamples


class ProgressiveTrainer:
    """Grows racks as a configuration says, which may be changed until they are trained.

    Args:
        config: the configuration, or one in plain values.
        out: where the rack of each stage is left, as the job leaves it (`load_rack` of `weights.py` there reads it); None
            keeps nothing but what the builder has. A folder is of one builder: stages of later calls, whatever is configured by
            then, are numbered after those that are there. One that was broken off trains anew, from what the builder has by then.
        say: takes lines for people; None prints them.

    Raises:
        ConfigError: where the configuration is wrong: here, or when it is used.
    """

    def __init__(
        self, config: StackWiseConfig | Mapping[str, Any], *, out: str | Path | None = None, say: Say | None = None
    ) -> None:
        self.config = StackWiseConfig.from_dict(config) if isinstance(config, Mapping) else config
        self.config.validate_sections()  # a builder of sizes brings its model
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
            dataloader: yields tokens, pairs of tokens and targets, or mappings, as `as_sequences` reads them.
            target_stacks: how many there are at last, those that are there included; None is what the configuration says. Where
                growth is not enabled, the builder gets as many, and all of them train at once.

        Returns:
            `stages`, a row each with losses before growth, after it and after training, steps, times, bytes, and all training
            losses under `losses`; `history`, the training losses of each stage by the uid of its new stack (of a joint stage,
            after those of the newest); `loss`, the last one on held-out samples (on samples of the loader itself: it has no
            others); `status`.

        Raises:
            ConfigError: where the configuration, the builder and the loader do not fit, or `out` holds another rack.
        """
        self.config.validate_sections()
        config = rack_builder.agree(self.config)
        config.validate()
        target = config.training.progressive.target_stacks if target_stacks is None else target_stacks
        is_grown = grows(config, target)
        samples = loader_samples(dataloader, config.data, vocab_size=config.model.vocab_size)
        while rack_builder.current_stacks < (1 if is_grown or target is None else target):
            rack_builder.add_stack()
        growth, rack = rack_builder.growth, rack_builder.spec
        spec = loaded_spec(config, samples, rack=rack, growth=growth, target_stacks=target)
        with self._folder(spec, rack_builder) as out:
            rows = self._stages(spec, rack_builder, samples, Path(out))
            if spec.growth.cache_dir is None:
                shutil.rmtree(caches(spec, Path(out)), ignore_errors=True)
        last = rows[-1] if rows else {}
        history: dict[int, list[float]] = {}
        for row in rows:
            history[row["uid"]] = history.get(row["uid"], []) + row["losses"]
        return {
            "stages": rows,
            "history": history,
            "loss": last.get("loss"),
            "status": last.get("status", "finished"),
        }

    train_progressively = train_rack

    def _folder(self, spec: ProgressiveSpec, builder: ProgressiveRackBuilder) -> AbstractContextManager[Any]:
        if self._out is None:
            return TemporaryDirectory()
        place = self._out.resolve()
        if next_index(place) and place not in builder.stages_in:
            raise ConfigError(f"{self._out}: holds stages of another rack; give another out")
        builder.stages_in.add(place)
        return run_folder(self._out, spec, may_change=tuple(spec.content()))

    def _stages(self, spec: ProgressiveSpec, builder: ProgressiveRackBuilder, samples: ArraySamples, out: Path) -> list[Row]:
        rows: list[Row] = []
        stage, start = self._first(spec, builder), Start(builder.build_rack(), builder.moments)
        if builder.trained >= set(builder.initial) and spec.growth.enabled:
            if spec.n_stages == 1:
                return rows
            stage = next_stage(spec, stage)
        n_before = next_index(out) - stage.index
        while True:
            numbered = replace(stage, index=n_before + stage.index)
            folder = stage_folder(out, numbered.index)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            place = StageSite(folder=folder, caches=caches(spec, out), ranks=Ranks(), say=self._say)
            run = StageRun(spec, stage, samples, start, place)
            builder.adopt(run.model.rack, stage.rack, stage.initial)  # before it may be broken off: the rack before is no more
            ended = run.train()
            assert ended is not None  # nothing asks it to stop
            rows.append(ended.row | {"stage": numbered.index + 1})
            start = ended.start
            builder.trained, builder.moments = builder.trained | set(builder.initial), start.moments
            if self._out is not None:
                finish(out, numbered, replace(ended, row=rows[-1]), place.ranks)
            if ended.row["status"] == "diverged" or stage.index + 1 == spec.n_stages:
                return rows
            stage = next_stage(spec, stage)

    def _first(self, spec: ProgressiveSpec, builder: ProgressiveRackBuilder) -> Stage:
        """The stage of the stacks that are there; what has been stored or adapted of them by hand stays so."""
        rack = with_time(spec, builder.spec)
        initial = {
            uid: stack_edits.trainable(stack, builder.initial[uid])
            for uid, stack in zip(stack_uids(rack), rack.stacks, strict=True)
        }
        return Stage(0, "first", rack, builder.spec, initial, max(stack_uids(rack)), spec.steps_of(0))
