"""What a search costs beside the scores that it asks for; `python -m tests.benchmarks.bench_search`.

The evaluator is made of numbers and takes 10 microseconds a score, far less than any supernet. The ratio is that of the whole
search to its scores alone: at 10 milliseconds a score what is above 1 is a thousandth of that.
"""

from __future__ import annotations

import argparse
import statistics
import time

from search.budget import Budget
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Strategy, best
from search.training.devices import hardware
from tests.search.landscapes import MIXERS, Landscape, space

SECONDS_A_SCORE = 10e-6
KINDS = {
    "beam without refine": {"kind": "beam", "refine": False},
    "beam": {"kind": "beam"},
    "exact": {"kind": "exact"},
    "pairwise": {"kind": "pairwise"},
    "evolution": {"kind": "evolution"},
    "random": {"kind": "random"},
}


class Mock(Landscape):
    """Scores that are numbers, and take as long as they are said to."""

    def __call__(self, placements: list[tuple[str, ...]]) -> list[float]:
        """The scores."""
        until = time.perf_counter() + SECONDS_A_SCORE * len(placements)
        scores = super().__call__(placements)
        while time.perf_counter() < until:
            pass
        return scores


def measure(strategy: Strategy, budget: Budget, seed: int) -> tuple[float, int, float]:
    """Seconds, scores and the best score of a search."""
    evaluate = Mock(budget.coding.slots, seed, interaction=0.3)
    started = time.perf_counter()
    rounds = strategy.search(budget.space, budget, evaluate)
    seconds = time.perf_counter() - started
    return seconds, len(evaluate.asked), best(rounds).score


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--attention", type=int, default=8, help="the budget")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rack = space(arguments.layers, tuple(MIXERS))
    started = time.perf_counter()
    budget = Budget.of(arguments.attention, rack)
    budget.costs.by_cost()
    print(f"{hardware()}: {arguments.layers} layers, {len(MIXERS)} mixers, {budget.text()}")
    print(f"counting costs: {time.perf_counter() - started:.2f} s, once a space")
    print(f"{'strategy':22} {'seconds':>8} {'(range)':>16} {'scores':>7} {'search / mock scores':>21} {'best score':>11}")
    for name, options in KINDS.items():
        strategy = STRATEGIES.build(STRATEGIES.part(options))
        measured = [measure(strategy, budget, seed) for seed in range(arguments.rounds)]
        seconds, scores, found = zip(*measured, strict=True)
        ratio = statistics.median(each / (n * SECONDS_A_SCORE) for each, n, _ in measured)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        row = f"{statistics.median(seconds):8.2f} {spread:>16} {statistics.median(scores):7.0f} {ratio:21.1f}"
        print(f"{name:22} {row} {statistics.mean(found):11.3f}")


if __name__ == "__main__":
    main()
