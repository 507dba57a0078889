"""Candidates for the next stack: each trained for some steps on the trunk's one cache, and ranked by what it comes to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt

from configs import ConfigError, Spec
from models import RackSpec, StackSpec
from models.placement import Placement, placement_text
from search.budget import Budget
from search.member import TrainSpec
from search.parallel import Ranks
from search.progressive.plan import grown_stage
from search.progressive.report import RESULT, Say
from search.progressive.spec import ProgressiveSpec, looks_back
from search.progressive.stage import Place, StageRun
from search.progressive.stages import CHOICE, Trained, caches, newest, refuse_other_data
from search.progressive.weights import stage_folder
from search.results import Row, run_folder, to_json, write_text
from search.strategies import STRATEGIES
from search.strategy import Strategy
from search.supernet.report import divergence
from search.supernet.spec import WorkersSpec
from search.training import OnEvaluation

LONGEST_NAME = 60


class CandidateSpec(Spec):
    """One candidate for the stage `index` of a run: a stack, trained on the trunk that the run's folder holds."""

    how_fields = ("run_folder",)
    job: Literal["candidate"] = "candidate"
    run: ProgressiveSpec
    run_folder: str
    index: NonNegativeInt
    stack: StackSpec

    @property
    def train(self) -> TrainSpec:
        """As the run trains."""
        return self.run.train

    @property
    def workers(self) -> WorkersSpec:
        """One worker of the kind that the run has."""
        return self.run.workers.model_copy(update={"n": 1})


Rank = Callable[[Mapping[str, CandidateSpec], Path], dict[str, Row]]
"""Trains candidates by name, each in the folder of its name; the row of one that failed has its text under `error`."""


def run_candidate(
    spec: CandidateSpec, out: Path, say: Say = lambda _: None, *, on_evaluation: OnEvaluation = lambda *_: None
) -> Row:
    """Train a candidate, or take what its folder holds; the row of its stage, and under `error` that it diverged.

    Raises:
        ConfigError: if the run's folder does not hold the stage before, or this one another candidate's.
        KeyboardInterrupt: after SIGINT or SIGTERM.
    """
    with run_folder(out, spec):
        if not (out / RESULT).exists():
            run, folder = spec.run, Path(spec.run_folder)
            last = newest(run, folder)
            if last is None or last.stage.index + 1 != spec.index:
                raise ConfigError(f"{folder}: the stage before stage {spec.index + 1} is not the newest that is done")
            write_text(out / RESULT, to_json(_trained(spec, last, out, say, on_evaluation)) + "\n")
        row: Row = json.loads((out / RESULT).read_text(encoding="utf-8"))
        text = divergence(row)
        return row | ({"error": text} if text else {})


def _trained(spec: CandidateSpec, last: Trained, out: Path, say: Say, on_evaluation: OnEvaluation) -> Row:
    stage = grown_stage(spec.run, last.stage, spec.stack, n_steps=spec.run.choice.n_steps)
    place = Place(folder=out, caches=caches(spec.run, Path(spec.run_folder)), ranks=Ranks(), say=say, on_evaluation=on_evaluation)
    ended = StageRun(spec.run, stage, spec.run.data.samples(spec.run.seed), last.start, place).train()
    assert ended is not None  # nothing asks it to stop
    return ended.row


def choose(spec: ProgressiveSpec, out: Path, rank: Rank, say: Say) -> None:
    """Rank the candidates of the stage that comes next, and write down which one is its stack.

    Raises:
        ConfigError: if all of them failed, or the budget cannot be met.
    """
    refuse_other_data(out, spec.data.samples(spec.seed))
    last = newest(spec, out)
    assert last is not None  # the first stage has no candidates
    ranking = _Ranking(spec, out, last, rank, say)
    if spec.candidates is not None:
        ranking.score(spec.candidates)
    else:
        assert spec.stack is not None  # what `chooses` means
        space = spec.space(spec.stack)
        strategy: Strategy = STRATEGIES.build(spec.choice.strategy)
        budget = Budget.of({} if spec.choice.budget is None else spec.choice.budget, space)
        strategy.search(space, budget, ranking.placements(space))
    name, stack = ranking.best()
    rows = [{"name": each, **{key: row.get(key) for key in TOLD}} for each, row in ranking.rows.items()]
    say(f"stage {last.stage.index + 2}: {name} is chosen among {len(rows)} candidate(s)")
    write_text(ranking.folder.parent / CHOICE, to_json({"name": name, "stack": stack.to_dict(), "candidates": rows}, indent=1))


TOLD = ("loss", "loss_grown", "steps", "seconds", "step_ms", "n_trained_parameters", "cache_hit_rate", "error")
"""What of a candidate's row stands with the choice."""


class _Ranking:
    """The candidates that have been trained so far: the lower the held-out loss, the better."""

    def __init__(self, spec: ProgressiveSpec, out: Path, last: Trained, rank: Rank, say: Say) -> None:
        shares = spec.growth.cache_activations and spec.growth.cache_mode != "stream"
        growth = spec.growth.model_copy(update={"cache_mode": "arrow"} if shares else {})
        self.run, self.out, self.last, self._rank, self._say = spec.model_copy(update={"growth": growth}), out, last, rank, say
        self.folder = stage_folder(out, last.stage.index + 1) / "candidates"
        self.stacks: dict[str, StackSpec] = {}
        self.rows: dict[str, Row] = {}
        self._filled: set[bool] = set()

    def score(self, stacks: Mapping[str, StackSpec]) -> list[float]:
        """The scores of stacks by name: minus the loss, minus infinity for one that failed."""
        left = {name: stack for name, stack in stacks.items() if not (self.folder / name / RESULT).exists()}
        for tells_pads, stack in {not looks_back(stack): stack for stack in left.values()}.items():
            if tells_pads not in self._filled:  # the trunk too is told of pads where the new stack is
                self._fill_cache(stack)
                self._filled.add(tells_pads)
        specs = {
            name: CandidateSpec(run=self.run, run_folder=str(self.out.resolve()), index=self.last.stage.index + 1, stack=stack)
            for name, stack in stacks.items()
        }
        self.stacks |= stacks
        found = self._rank(specs, self.folder)
        self.rows |= {name: {"error": row["error"]} if "error" in row else row for name, row in found.items()}
        return [-math.inf if "error" in self.rows[name] else -float(self.rows[name]["loss"]) for name in stacks]

    def placements(self, space: RackSpec) -> Callable[[list[Placement]], list[float]]:
        """What a strategy asks for scores."""

        def evaluate(placements: list[Placement]) -> list[float]:
            placed = {placement: space.place(placement).stacks[0] for placement in placements}
            return self.score({_name(placement, stack): stack for placement, stack in placed.items()})

        return evaluate

    def best(self) -> tuple[str, StackSpec]:
        """The name and the stack with the lowest loss."""
        losses = {name: float(row["loss"]) for name, row in self.rows.items() if "error" not in row}
        if not losses:
            raise ConfigError(f"{self.folder}: no candidate could be trained: {next(iter(self.rows.values())).get('error')}")
        name = min(losses, key=lambda each: losses[each])
        return name, self.stacks[name]

    def _fill_cache(self, stack: StackSpec) -> None:
        """Before candidates are trained side by side: one process writes, the others read."""
        # How the new stack starts is nothing to the trunk; a candidate that cannot start so is to fail by itself.
        run = self.run.model_copy(update={"growth": self.run.growth.model_copy(update={"init": "random"})})
        stage = grown_stage(run, self.last.stage, stack, n_steps=run.choice.n_steps)
        place = Place(folder=self.folder, caches=caches(run, self.out), ranks=Ranks(), say=lambda _: None)
        # A stage makes the rack that it starts from its own, so that here has to be another.
        start = newest(run, self.out)
        assert start is not None  # as above
        cache = StageRun(run, stage, run.data.samples(run.seed), start.start, place).cache
        if cache is not None:
            told = cache.told()
            self._say(f"stage {stage.index + 1}: the trunk's output for {told['cache_bytes']:,} bytes, once for all candidates")


def _name(placement: Placement, stack: StackSpec) -> str:
    """A folder's name that tells the placement, and differs where anything else does."""
    text = re.sub(r"\W+", "_", placement_text(placement).replace("*", "x"))
    return f"{text[:LONGEST_NAME]}-{stack.fingerprint()}"
