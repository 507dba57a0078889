"""The parts of the jobs that run on Ray: Train for supernets and growth, Tune for racks, candidates and rounds of a search."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from launch.cluster import cluster
from launch.mad.sweep import execute
from launch.scoring.supernet_scorer import supernet_scorer
from launch.train.trainer import grow_on_ray, train_on_ray
from launch.tune.alignment import align_layers_on_ray
from launch.tune.candidates import train_candidates_on_ray
from launch.tune.racks import train_racks_on_ray
from models import Supernet
from search.evaluation.evaluator import Scorer
from search.jobs.backend import Backend
from search.jobs.placement.spec import ScoringSpec
from search.jobs.supernet.spec import SupernetSpec
from search.training.batches import Batch


def _open_scorer(
    supernet: Supernet, batches: Mapping[str, Sequence[Batch]], spec: ScoringSpec, trained: SupernetSpec, out: Path
) -> AbstractContextManager[Scorer]:
    return supernet_scorer(
        supernet,
        batches,
        spec.metric,
        out,
        spec.workers,
        device=trained.train.device,
        max_eval_memory=spec.max_eval_memory,
        precision=trained.train.scores_in,
    )


ON_RAY = Backend(
    mad=execute,
    train_supernet=train_on_ray,
    train_racks=train_racks_on_ray,
    open_scorer=_open_scorer,
    train_growth=grow_on_ray,
    train_candidates=train_candidates_on_ray,
    align_layers=align_layers_on_ray,
    session=cluster,
)
"""Everything on Ray: on the cluster there is, or on one started here."""
