"""The backend of `python -m search`: all work of a job in this process, one piece after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from configs import ConfigError
from configs.records import Row
from search.jobs.backend import QUIET_SECONDS, Backend
from search.jobs.hybridize.alignment import LayerAlignmentSpec, align_layer, limits_of_alignment
from search.jobs.progressive.candidates import CandidateSpec, limits_of, run_candidate
from search.jobs.progressive.stages import run_stages
from search.jobs.supernet.job import train_rack, train_supernet
from search.jobs.supernet.spec import SupernetSpec
from search.runs.console import make_console
from search.runs.errors import ends_the_run
from search.runs.isolation import NO_LIMITS, IsolationSpec, error_text, marker, run_trial
from search.runs.report import Say, outcome, outcome_text


def _in_turn(
    specs: Mapping[str, Any], out: Path, train: Callable[[Any, Path, Say], Row], limits: IsolationSpec
) -> dict[str, Row]:
    """One after the other; one that raises, dies, leaves or hangs is told by its error, and the next one starts.

    `train` is a function at the top of a module, for it may be called in another process.
    """
    say, summaries = partial(make_console().print, markup=False), {}
    for number, (name, spec) in enumerate(specs.items(), start=1):
        try:
            work = partial(train, spec, out / name)
            summaries[name] = run_trial(work, RateLimitedLog(name, say), limits, markers=[marker(out, name)])
        except ConfigError:
            raise
        except Exception as error:
            if ends_the_run(error):
                raise
            summaries[name] = {"error": error_text(error)}
        say(f"[{number}/{len(specs)}] {name}: {outcome_text(summaries[name])}")
    return summaries


def _train_racks(runs: Mapping[str, SupernetSpec], out: Path, limits: IsolationSpec = NO_LIMITS) -> dict[str, Row]:
    return _in_turn(runs, out, _rack, limits)


def _rack(spec: SupernetSpec, folder: Path, say: Say) -> Row:
    return outcome(train_rack(spec, folder, say))


def _train_candidates(candidates: Mapping[str, CandidateSpec], out: Path) -> dict[str, Row]:
    return _in_turn(candidates, out, run_candidate, limits_of(candidates))


def _align_layers(layers: Mapping[str, LayerAlignmentSpec], out: Path) -> dict[str, Row]:
    return _in_turn(layers, out, align_layer, limits_of_alignment(layers))


class RateLimitedLog:
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


HERE = Backend(
    mad=None,
    train_supernet=train_supernet,
    train_racks=_train_racks,
    open_scorer=lambda *_: nullcontext(),
    train_growth=run_stages,
    train_candidates=_train_candidates,
    align_layers=_align_layers,
    session=nullcontext,
)
"""Everything in this process."""
