"""Checks of a placement search before anything runs: budgets, rivals, the supernet's folder."""

import torch

from configs import ConfigError
from models import RackSpec, parse_placement
from search.budget import Budget
from search.jobs.placement.spec import ScoringSpec, SearchSpec
from search.jobs.supernet.spec import SupernetSpec
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Strategy
from search.training.mixture import Mixture


def check_strategies(spec: SearchSpec, space: RackSpec) -> None:
    """ConfigError if a budget cannot be met, a strategy's options do not fit the space, or a rival is none of its placements."""
    latencies = spec.latencies()
    budgets = [Budget.of(value, space, latency=latencies) for value in spec.budgets]
    parts = {"strategy": spec.strategy, **{f"rivals.{name}": rival for name, rival in spec.rivals.items()}}
    for name, part in parts.items():
        if isinstance(part, str):
            parse_placement(part, space.slots())
            continue
        for budget in budgets:
            try:
                strategy: Strategy = STRATEGIES.build(part)
                next(strategy.rounds(budget), None)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None


def check_same_data(trained: SupernetSpec, scoring: ScoringSpec, *, n_test: tuple[int, int] | None = None) -> None:
    """ConfigError if the tasks have fewer instances than scoring, and a test of `n_test` (batches, rows), take."""
    mixture = Mixture(trained.data, seed=trained.seed, device=torch.device("cpu"))
    mixture.evaluation(scoring.n_batches, scoring.batch_size)
    if n_test is not None:
        mixture.evaluation(*n_test, "test")
