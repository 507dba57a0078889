"""Where a trial runs: in this process, or in one of its own where that is asked for, or where this one died of it before."""

import pickle
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveFloat

from configs import Spec
from configs.records import write_json
from search.runs.own_process import T, Tell, TrialError, UnpicklableError, Work, contained, run_in_own_process


class IsolationSpec(Spec):
    """What keeps a trial that dies, leaves or hangs from taking the others along: it is that trial's failure, and they go on.

    `isolate_trials` runs each in a process of its own. So does `trial_timeout`, the seconds that a trial may take at one go (a
    pack has as many times that as it has trials), after which it is ended. Without either, a trial of which `python -m search`
    died runs in a process of its own at the next start; on Ray every worker is one.
    """

    outside_fingerprint: ClassVar[tuple[str, ...]] = ("isolate_trials", "trial_timeout")
    isolate_trials: bool = False
    trial_timeout: PositiveFloat | None = None

    @property
    def isolates(self) -> bool:
        """Whether every trial has a process of its own."""
        return self.isolate_trials or self.trial_timeout is not None


NO_LIMITS = IsolationSpec()


def marker(folder: Path, name: str) -> Path:
    """The file that lies in a run's folder while a trial runs in the run's own process: what is left there died of it."""
    return folder / f".running-{name}.json"


def run_trial(
    work: Work[T],
    tell: Tell,
    limits: IsolationSpec,
    *,
    markers: Sequence[Path] = (),
    n_trials: int = 1,
    dumps: Callable[[Any], bytes] = pickle.dumps,
) -> T:
    """Do a trial's work, or a pack's, here or in a process of its own.

    Args:
        work: what is done.
        tell: is told what the work tells.
        limits: what the user asks for.
        markers: of the trials; a kill leaves them, and then the work has a process of its own until it has once been done.
        n_trials: how many times `trial_timeout` the work may take.
        dumps: as of `run_in_own_process`.

    Raises:
        TrialError: as `run_in_own_process` does, and `contained`.
    """
    if limits.isolates or any(each.exists() for each in markers):
        timeout = None if limits.trial_timeout is None else limits.trial_timeout * n_trials
        try:
            result = run_in_own_process(work, tell, timeout=timeout, dumps=dumps)
        except UnpicklableError:
            _remove(markers)  # the others go on without it, and the next start tries it here again
            raise
        _remove(markers)
        return result
    try:
        for each in markers:
            write_json(each, {"running": each.name})
        return contained(work, tell)
    finally:
        _remove(markers)


def _remove(markers: Sequence[Path]) -> None:
    for each in markers:
        each.unlink(missing_ok=True)


def error_text(error: Exception) -> str:
    """What to write down of a trial that failed, while its exception is handled."""
    return str(error) if isinstance(error, TrialError) else traceback.format_exc()
