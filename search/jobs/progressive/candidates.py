"""Candidates for the next stack: each trained for some steps on the trunk's one cache, and ranked by what it comes to."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt

from configs import ConfigError, Spec
from models import StackSpec
from models.spec.placement import Placement, placement_text
from search.budget import Budget
from search.jobs.progressive.plan import grown_stage
from search.jobs.progressive.report import RESULT
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stage import StageRun, StageSite
from search.jobs.progressive.stages import CHOICE, Ended, TrainedStage, caches, newest, next_index, refuse_other_data
from search.jobs.progressive.weights import stage_folder
from search.runs.interruption import interruptions
from search.runs.report import Say, diverged_message
from search.runs.run_folder import CHECKPOINT, Row, run_folder, to_json, write_text
from search.runs.workers import WorkersSpec
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Strategy, best
from search.training.loop import OnEvaluation
from search.training.ranks import Ranks
from search.training.spec import TrainSpec

_LONGEST_NAME = 60


class CandidateSpec(Spec):
    """One candidate for the stage `index` of a run: a stack, trained on the trunk that the run's folder holds."""

    outside_fingerprint = ("run_folder",)
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
    """Train a candidate, or take what its folder holds: the row of its stage, and under `error` that it diverged.

    What cannot be built or trained here is an `error` too, and nothing else; it is tried again by the next call.

    Raises:
        ConfigError: if the run's folder does not hold the stage before, or this one another candidate's.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint of the last finished step.
    """
    with run_folder(out, spec):
        if not (out / RESULT).exists():
            run, folder = spec.run, Path(spec.run_folder)
            last = newest(run, folder)
            if last is None or last.stage.index + 1 != spec.index:
                raise ConfigError(f"{folder}: the stage before stage {spec.index + 1} is not the newest that is done")
            try:
                ended = _trained(spec, last, out, say, on_evaluation)
            except ConfigError as error:
                return {"error": str(error)}
            if ended is None:
                raise KeyboardInterrupt
            write_text(out / RESULT, to_json(ended.row) + "\n")
            (out / CHECKPOINT).unlink(missing_ok=True)
        row: Row = json.loads((out / RESULT).read_text(encoding="utf-8"))
        text = diverged_message(row)
        return row | ({"error": text} if text else {})


def _trained(spec: CandidateSpec, last: TrainedStage, out: Path, say: Say, on_evaluation: OnEvaluation) -> Ended | None:
    stage = grown_stage(spec.run, last.stage, spec.stack, n_steps=spec.run.choice.n_steps)
    with interruptions() as is_interrupted:
        place = StageSite(
            folder=out,
            caches=caches(spec.run, Path(spec.run_folder)),
            ranks=Ranks(),
            say=say,
            is_stopped=is_interrupted,
            on_evaluation=on_evaluation,
        )
        return StageRun(spec.run, stage, spec.run.data.samples(spec.run.seed), last.start, place).train()


def choose_stack(spec: ProgressiveSpec, out: Path, rank: Rank, say: Say) -> None:
    """Rank the candidates of the stage that comes next, and write down which one is its stack.

    Raises:
        ConfigError: if all of them failed, or the budget cannot be met.
    """
    refuse_other_data(out, spec.data.samples(spec.seed))
    index = next_index(out)
    ranking = _Ranking(spec, out, index, rank)
    if spec.candidates is not None:
        scores = ranking.score(spec.candidates)
        name, score = max(zip(spec.candidates, scores, strict=True), key=lambda pair: pair[1])
    else:
        name, score = ranking.search()
    if score == -math.inf:
        raise ConfigError(f"{ranking.folder}: no candidate could be trained: {ranking.rows[name].get('error')}")
    rows = [{"name": each, **{key: row.get(key) for key in TOLD}} for each, row in ranking.rows.items()]
    say(f"stage {index + 1}: {name} is chosen among {len(rows)} candidate(s)")
    told = {"name": name, "stack": ranking.stacks[name].to_dict(), "candidates": rows}
    write_text(stage_folder(out, index) / CHOICE, to_json(told, indent=1))


TOLD = ("loss", "loss_grown", "steps", "seconds", "step_ms", "n_trained_parameters", "cache_hit_rate", "error")
"""What of a candidate's row stands with the choice."""


class _Ranking:
    """The candidates that have been trained so far: the lower the held-out loss, the better.

    They share files of the trunk's output: whoever comes first writes them, and the others wait for it.
    """

    def __init__(self, spec: ProgressiveSpec, out: Path, index: int, rank: Rank) -> None:
        growth = spec.growth.model_copy(update={"cache_mode": "arrow"} if _can_share(spec) else {})
        self.run, self.run_folder = spec.model_copy(update={"growth": growth}), str(out.resolve())
        self.index, self.folder, self._rank = index, stage_folder(out, index) / "candidates", rank
        self.stacks: dict[str, StackSpec] = {}
        self.rows: dict[str, Row] = {}

    def score(self, stacks: Mapping[str, StackSpec]) -> list[float]:
        """The scores of stacks by name: minus the loss, minus infinity for one that failed."""
        how: dict[str, Any] = {"run": self.run, "run_folder": self.run_folder, "index": self.index}
        self.stacks |= stacks
        found = self._rank({name: CandidateSpec(**how, stack=stack) for name, stack in stacks.items()}, self.folder)
        self.rows |= {name: {"error": row["error"]} if "error" in row else row for name, row in found.items()}
        return [-math.inf if "error" in self.rows[name] else -float(self.rows[name]["loss"]) for name in stacks]

    def search(self) -> tuple[str, float]:
        """What the strategy finds within the budget, by name, and its score."""
        spec = self.run
        assert spec.stack is not None  # what `chooses` means
        space = spec.space(spec.stack)
        names: dict[Placement, str] = {}

        def evaluate(placements: list[Placement]) -> list[float]:
            placed = {placement: space.place(placement).stacks[0] for placement in placements}
            names.update({placement: _name(placement, stack) for placement, stack in placed.items()})
            return self.score({names[placement]: stack for placement, stack in placed.items()})

        strategy: Strategy = STRATEGIES.build(spec.choice.strategy)
        budget = Budget.of({} if spec.choice.budget is None else spec.choice.budget, space)
        found = best(strategy.search(space, budget, evaluate))
        return names[found.placement], found.score


def _can_share(spec: ProgressiveSpec) -> bool:
    """Whether files of all that candidates read are wanted, and within the limit."""
    growth, rack = spec.growth, spec.rack
    if growth.cache_activations is False or growth.cache_mode == "stream":
        return False
    n_bytes = spec.choice.n_steps * spec.data.batch_size * spec.data.sizes()[1] * rack.d_model * (2 if rack.residual_dtype else 4)
    return growth.cache_bytes is None or n_bytes <= growth.cache_bytes


def _name(placement: Placement, stack: StackSpec) -> str:
    """A folder's name that tells the placement, and differs where anything else does."""
    text = re.sub(r"\W+", "_", placement_text(placement).replace("*", "x"))
    return f"{text[:_LONGEST_NAME]}-{stack.fingerprint()}"
