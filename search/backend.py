"""Who runs the work of a job: this process, or Ray. The jobs themselves are the same."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from configs import ConfigError
from models import Supernet
from search.batches import Batch
from search.history import Say
from search.mad.job import Execute
from search.placement.spec import ScoringSpec
from search.progress import duration, make_console
from search.progressive.candidates import CandidateSpec, Rank, run_candidate
from search.progressive.spec import ProgressiveSpec
from search.progressive.stages import train_here
from search.results import Row
from search.scoring import Scorer
from search.supernet.job import run, train_rack
from search.supernet.report import divergence
from search.supernet.spec import SupernetSpec

QUIET_SECONDS = 30.0


class TrainSupernet(Protocol):
    """Trains a supernet, or a rack without choices, into its run folder; goes on where the folder stops."""

    def __call__(self, spec: SupernetSpec, out: Path, /) -> Row:
        """The summary that `results.json` holds."""


class TrainRacks(Protocol):
    """Trains many small racks, each into the folder of its name; those that are finished are not trained again."""

    def __call__(self, runs: Mapping[str, SupernetSpec], out: Path, /) -> dict[str, Row]:
        """The summaries by name; that of a run that failed or diverged has its text under `error`, and nothing else."""


class OpenScorer(Protocol):
    """Opens, for the time of a search, what turns placements and batches into numbers."""

    def __call__(
        self, supernet: Supernet, batches: Mapping[str, Sequence[Batch]], spec: ScoringSpec, trained: SupernetSpec, out: Path, /
    ) -> AbstractContextManager[Scorer | None]:
        """A scorer for a supernet trained as `trained` says; None has the evaluator score in this process."""


class TrainGrowth(Protocol):
    """Runs the stages of a growth that its folder does not hold yet, up to the end or to the next choice of a stack."""

    def __call__(self, spec: ProgressiveSpec, out: Path, say: Say, /) -> None:
        """`say` takes lines for people; KeyboardInterrupt where it was stopped."""


@dataclass(frozen=True)
class Backend:
    """What of the jobs may run elsewhere. `mad` None runs the MAD suite's trials in this process.

    A job of several parts opens a `session` around them, so that what they run on is started once.
    """

    mad: Execute | None
    train_supernet: TrainSupernet
    train_racks: TrainRacks
    open_scorer: OpenScorer
    train_growth: TrainGrowth
    train_candidates: Rank
    session: Callable[[], AbstractContextManager[object]]


def _in_turn(specs: Mapping[str, Any], out: Path, train: Callable[[Any, Path, Seldom], Row]) -> dict[str, Row]:
    """One after the other; one that fails is told by its error, and the next one starts."""
    say, summaries = partial(make_console().print, markup=False), {}
    for number, (name, spec) in enumerate(specs.items(), start=1):
        try:
            summaries[name] = train(spec, out / name, Seldom(name, say))
        except ConfigError:
            raise
        except Exception:  # noqa: BLE001 - whatever a model raises is that model's result
            summaries[name] = {"error": traceback.format_exc()}
        say(f"[{number}/{len(specs)}] {name}: {outcome_text(summaries[name])}")
    return summaries


def _train_racks(runs: Mapping[str, SupernetSpec], out: Path) -> dict[str, Row]:
    return _in_turn(runs, out, lambda spec, folder, say: outcome(train_rack(spec, folder, say)))


def _train_candidates(candidates: Mapping[str, CandidateSpec], out: Path) -> dict[str, Row]:
    return _in_turn(candidates, out, run_candidate)


class Seldom:
    """Passes on a rack's lines with its name, but no more than one every `QUIET_SECONDS`: a short run says nothing."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._said_at = time.monotonic()

    def __call__(self, text: str) -> None:
        """A line that the rack has to say."""
        now = time.monotonic()
        if now - self._said_at >= QUIET_SECONDS:
            self._said_at = now
            self._say(f"{self._name}: {text}")


def outcome(summary: Row) -> Row:
    """What `TrainRacks` gives for a rack whose run has ended with this summary."""
    text = divergence(summary)
    return {"error": text} if text else summary


def outcome_text(row: Row) -> str:
    """A rack's outcome in a few words."""
    if "error" in row:
        return f"failed: {row['error'].strip().splitlines()[-1]}"
    return f"held-out loss {row['loss']:.4f}, {duration(row['seconds'])}"


HERE = Backend(
    mad=None,
    train_supernet=run,
    train_racks=_train_racks,
    open_scorer=lambda *_: nullcontext(),
    train_growth=train_here,
    train_candidates=_train_candidates,
    session=nullcontext,
)
"""Everything in this process."""
