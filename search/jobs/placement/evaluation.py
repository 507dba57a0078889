"""Opens the evaluator of a supernet: in this process, or over the workers of a backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from models import Supernet
from search.evaluation.evaluator import Evaluator
from search.evaluation.score_log import ScoreLog
from search.evaluation.supernet_evaluator import SupernetEvaluator, score_key
from search.jobs.backend import Backend
from search.jobs.placement.spec import ScoringSpec
from search.jobs.supernet.spec import SupernetSpec
from search.runs.console import make_console
from search.runs.run_folder import tell_damage
from search.training.devices import resolve_device
from search.training.mixture import Mixture

SCORES = "scores.jsonl"


@contextmanager
def open_evaluator(
    spec: ScoringSpec, supernet: Supernet, trained: SupernetSpec, out: Path, backend: Backend
) -> Iterator[Evaluator]:
    """An evaluator of a supernet that was trained as `trained` says, with its log in `out`, for the time of the block."""
    device = resolve_device(trained.train.device)
    supernet = supernet.to(device).eval()
    mixture = Mixture(trained.data, seed=trained.seed, device=device)
    batches = mixture.evaluation(spec.n_batches, spec.batch_size)
    data, precision = mixture.fingerprint(batches), trained.train.precision
    out.mkdir(parents=True, exist_ok=True)
    log = ScoreLog(out / SCORES)
    tell_damage(log, partial(make_console().print, markup=False), "those placements are scored again")
    how: dict[str, Any] = {"log": log, "race": spec.race, "confidence": spec.confidence}
    with backend.open_scorer(supernet, batches, spec, trained, out) as scorer:
        if scorer is None:
            how |= {"metric": spec.metric, "max_eval_memory": spec.max_eval_memory, "precision": precision}
            yield SupernetEvaluator(supernet, batches, mixture.shares, data_fingerprint=data, **how)
        else:
            key = score_key(supernet, data, spec.metric, precision=precision)
            yield Evaluator(scorer, n_batches=spec.n_batches, shares=mixture.shares, key=key, **how)
