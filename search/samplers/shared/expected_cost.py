"""The mean cost of placements drawn by a sampler."""

import numpy as np

from search.budget.costs import Costs, CostTable
from search.samplers.shared.sampler import Sampler


def expected_cost(sampler: Sampler, costs: CostTable, n_steps: int, n_draws: int = 1000) -> Costs:
    """What a placement of a training of `n_steps` costs on average, by dimension.

    Exact where the sampler knows its shares; else the mean over `n_draws` steps (all, if there are fewer), spread evenly, since
    a schedule does not draw the same in the end as in the beginning.
    """
    shares = sampler.shares()
    if shares is not None:
        return costs.of_shares(shares)
    steps = np.linspace(0, n_steps - 1, min(n_draws, n_steps)).astype(int).tolist()
    drawn = [costs.of_placement(sampler.draw(0, step, index)) for step in steps for index in range(sampler.n_per_step)]
    return {key: float(np.mean([each[key] for each in drawn])) for key in costs.base}
