"""Opens the evaluator of a supernet: in this process, or over the workers of a backend."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Supernet
from search.evaluation.evaluator import Evaluator
from search.evaluation.score_log import ScoreLog
from search.evaluation.supernet_evaluator import SupernetEvaluator, score_key
from search.jobs.backend import Backend
from search.jobs.placement.spec import ScoringSpec
from search.jobs.supernet.spec import SupernetSpec
from search.runs.console import make_console
from search.runs.run_folder import tell_damage
from search.training.batches import Batch
from search.training.devices import resolve_device
from search.training.mixture import Mixture
from tasks import IGNORED

SCORES = "scores.jsonl"


@contextmanager
def open_evaluator(
    spec: ScoringSpec, supernet: Supernet, trained: SupernetSpec, out: Path, backend: Backend | None = None
) -> Iterator[Evaluator]:
    """An evaluator of a supernet that was trained as `trained` says, with its log in `out`, for the time of the block.

    Without a backend it measures in this process.
    """
    device = resolve_device(trained.train.device)
    supernet = supernet.to(device).eval()
    mixture = Mixture(trained.data, seed=trained.seed, device=device)
    batches = thinned(mixture.evaluation(spec.n_batches, spec.batch_size), spec.positions_per_row)
    data, precision = mixture.fingerprint(batches), trained.train.scores_in
    out.mkdir(parents=True, exist_ok=True)
    log = ScoreLog(out / SCORES)
    say = partial(make_console().print, markup=False)
    tell_damage(log, say, "those placements are scored again")
    how: dict[str, Any] = {"log": log, "race": spec.race, "confidence": spec.confidence, "say": say}
    with nullcontext() if backend is None else backend.open_scorer(supernet, batches, spec, trained, out) as scorer:
        if scorer is None:
            how |= {"metric": spec.metric, "max_eval_memory": spec.max_eval_memory, "precision": precision}
            yield SupernetEvaluator(supernet, batches, mixture.shares, data_fingerprint=data, **how)
        else:
            key = score_key(supernet, data, spec.metric, precision=precision)
            yield Evaluator(scorer, n_batches=spec.n_batches, shares=mixture.shares, key=key, **how)


def thinned(batches: Mapping[str, Sequence[Batch]], n: int | None) -> dict[str, list[Batch]]:
    """The batches with at most `n` of the asked positions of each row, at equal distances and the last one in; None: all."""
    if n is None:
        return {task: list(own) for task, own in batches.items()}
    return {task: [(inputs, _thinned(targets, n)) for inputs, targets in own] for task, own in batches.items()}


def _thinned(targets: Tensor, n: int) -> Tensor:
    asked = targets != IGNORED
    number, n_asked = asked.cumsum(1), asked.sum(1, keepdim=True)
    # The k-th of m asked positions is kept where floor(k * n / m) steps up; all, where there are n at most.
    kept = (number * n // n_asked.clamp(min=1)) > ((number - 1) * n // n_asked.clamp(min=1))
    return torch.where(asked & (kept | (n_asked <= n)), targets, IGNORED)
