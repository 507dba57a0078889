"""The table of truth: what training every placement said, beside what the supernet and the strategies said."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from models import Placement, placement_text
from search.jobs.pipeline.retrain import RetrainedRack


@dataclass(frozen=True)
class StrategyChoice:
    """What a strategy chose, and how many placements it had scored."""

    placement: Placement
    n_evaluations: int


@dataclass(frozen=True)
class Judgement:
    """A strategy, over supernets: the mean stand-alone loss of its choices above the best there is, and below interleave's."""

    regret: float
    gain: float | None
    n_evaluations: float


@dataclass(frozen=True)
class Truth:
    """`trained` by placement; `scores` (higher is better, minus infinity for none) and `choices` of each supernet."""

    trained: Mapping[Placement, RetrainedRack]
    scores: Sequence[Mapping[Placement, float]]
    choices: Sequence[Mapping[str, StrategyChoice]]

    @cached_property
    def losses(self) -> dict[Placement, float]:
        """Mean stand-alone test loss by placement, best first."""
        return dict(sorted(((placement, each.loss) for placement, each in self.trained.items()), key=lambda item: item[1]))

    @property
    def taus(self) -> list[float | None]:
        """Kendall's tau-b between each supernet's scores and the stand-alone losses."""
        return [_tau([-scores[placement] for placement in self.losses], list(self.losses.values())) for scores in self.scores]

    @property
    def tau_of_mean(self) -> float | None:
        """The same for the scores averaged over the supernets."""
        means = [statistics.fmean(scores[placement] for scores in self.scores) for placement in self.losses]
        return _tau([-mean for mean in means], list(self.losses.values()))

    @property
    def tau_between_seeds(self) -> float | None:
        """Between the stand-alone losses of two seeds, mean over pairs: what one training run tells of another.

        None with a single seed, or where a seed has the same loss for all.
        """
        by_seed = list(zip(*(self.trained[placement].losses for placement in self.losses), strict=True))
        pairs = [_tau(first, second) for first, second in itertools.combinations(by_seed, 2)]
        known = [tau for tau in pairs if tau is not None]
        return statistics.fmean(known) if known and len(known) == len(pairs) else None

    @property
    def spread(self) -> tuple[float, float | None]:
        """Standard deviation of the mean losses over placements, and of one placement's losses over seeds (mean)."""
        seeds = [statistics.stdev(each.losses) for each in self.trained.values() if len(each.losses) > 1]
        return statistics.pstdev(self.losses.values()), statistics.fmean(seeds) if seeds else None

    def judgements(self) -> dict[str, Judgement]:
        """Every strategy's regret, gain over `interleave` (if that is one of them) and evaluations, means over the supernets."""
        least = min(self.losses.values())

        def loss(name: str) -> float:
            return statistics.fmean(self.losses[choices[name].placement] for choices in self.choices)

        names = list(self.choices[0])
        hand_made = loss("interleave") if "interleave" in names else None
        return {
            name: Judgement(
                loss(name) - least,
                None if hand_made is None else hand_made - loss(name),
                statistics.fmean(choices[name].n_evaluations for choices in self.choices),
            )
            for name in names
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        between, within = self.spread
        return {
            "kendall_tau": self.taus,
            "kendall_tau_of_mean_score": self.tau_of_mean,
            "kendall_tau_between_seeds": self.tau_between_seeds,
            "standard_deviation_over_placements": between,
            "standard_deviation_over_seeds": within,
            "placements": [
                {
                    "text": placement_text(placement),
                    "placement": list(placement),
                    "loss": loss,
                    "standard_error": self.trained[placement].standard_error,
                    "losses": self.trained[placement].losses,
                    "folders": list(self.trained[placement].folders),
                    "scores": [score if math.isfinite(score := scores[placement]) else None for scores in self.scores],
                }
                for placement, loss in self.losses.items()
            ],
            "strategies": {
                name: {
                    **vars(judgement),
                    "choices": [placement_text(choices[name].placement) for choices in self.choices],
                }
                for name, judgement in self.judgements().items()
            },
        }


def tau_text(tau: float | None) -> str:
    """Kendall's tau for people."""
    return "none, all are equal" if tau is None else f"{tau:.2f}"


def _tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b; None where all values of one side are equal: there is no order to agree with."""
    from scipy.stats import kendalltau  # noqa: PLC0415 - a second to import: here, `check` does not wait for it

    tau = float(kendalltau(first, second).statistic)
    return tau if math.isfinite(tau) else None
