"""Checks of a placement search before anything runs: budgets, rivals, the supernet's folder."""

import torch

from configs import ConfigError
from configs.errors import yaml_path
from models import RackSpec
from search.jobs.placement.spec import ScoringSpec, SearchSpec
from search.jobs.supernet.spec import SupernetSpec
from search.training.mixture import Mixture


def check_strategies(spec: SearchSpec, space: RackSpec) -> None:
    """ConfigError if a budget cannot be met, a strategy's options do not fit the space, or a rival is none of its placements."""
    problems = [f"{yaml_path(location)}: {text}" for location, text in spec.problems_in(space, spec.latencies())]
    if problems:
        raise ConfigError("\n".join(problems))


def check_same_data(trained: SupernetSpec, scoring: ScoringSpec, *, n_test: tuple[int, int] | None = None) -> None:
    """ConfigError if the tasks have fewer instances than scoring, and a test of `n_test` (batches, rows), take."""
    mixture = Mixture(trained.data, seed=trained.seed, device=torch.device("cpu"))
    mixture.evaluation(scoring.n_batches, scoring.batch_size)
    if n_test is not None:
        mixture.evaluation(*n_test, "test")
