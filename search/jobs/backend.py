"""Backend: the parts of a job that may run elsewhere (training, scoring, trials); here or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from configs.records import Row
    from models import Supernet
    from search.evaluation.evaluator import Scorer
    from search.jobs.hybridize.alignment import AlignLayers
    from search.jobs.mad.job import Execute
    from search.jobs.placement.spec import ScoringSpec
    from search.jobs.progressive.candidates import Rank
    from search.jobs.progressive.spec import ProgressiveSpec
    from search.jobs.supernet.spec import SupernetSpec
    from search.runs.isolation import IsolationSpec
    from search.runs.report import Say
    from search.training.batches import Batch

QUIET_SECONDS = 30.0


class TrainSupernet(Protocol):
    """Trains a supernet, or a rack without choices, into its run folder; goes on where the folder stops."""

    def __call__(self, spec: SupernetSpec, out: Path, /) -> Row:
        """The summary that `results.json` holds."""


class TrainRacks(Protocol):
    """Trains many small racks, each into the folder of its name; those that are finished are not trained again."""

    def __call__(self, runs: Mapping[str, SupernetSpec], out: Path, limits: IsolationSpec, /) -> dict[str, Row]:
        """The summaries by name; that of a run that failed or diverged has its text under `error`, and nothing else.

        One that dies, leaves or takes longer than the limits allow has failed, too.
        """


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
    align_layers: AlignLayers
    session: Callable[[], AbstractContextManager[object]]
