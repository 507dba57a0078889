"""What the walk of the trie and racing gain over one placement at a time; `python -m tests.benchmarks.bench_evaluator`.

A beam of 4 places 4 layers of attention among 12 of three mixers (--width, --layers). Three searches go round by round in
turn, on the same supernet and the same batches: one pass a placement (several batches together, as is fastest), the walk, the
walk with a race. Seconds are this process's own.

The supernet is random, with layers that matter to a different degree (0.7 to the power of their rank), as they do after long
training: where all are alike a race has nothing to drop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models import Placement, RackSpec, Supernet
from search.budget import Budget
from search.evaluation.evaluator import Evaluator
from search.evaluation.supernet_evaluator import SupernetEvaluator
from search.strategies import STRATEGIES
from search.training.batches import Batch
from search.training.devices import hardware, use_one_thread

VOCABULARY = 16
MIXERS = {
    "attention": {"kind": "attention", "n_heads": 4},
    "delta": {"kind": "gated_delta_net", "n_heads": 4},
    "linear": {"kind": "linear_attention", "n_heads": 4},
}


class OneAtATime:
    """The scorer that the walk is held against: every placement through the whole supernet.

    What the main placement says is known to it beforehand.
    """

    @torch.no_grad()
    def __init__(self, supernet: Supernet, batches: Sequence[Batch], together: int) -> None:
        self._supernet, self._together, self._tokens = supernet, together, [inputs for inputs, _ in batches]
        supernet.activate(supernet.main)
        self._expected = [supernet(tokens).log_softmax(-1) for tokens in self._tokens]

    @torch.no_grad()
    def __call__(self, placements: Sequence[Placement], batches: range) -> dict[str, np.ndarray]:
        """Negative divergences from the main placement, by batch."""
        rows = []
        for placement in placements:
            self._supernet.activate(placement)
            parts = [self._scores(batches[first : first + self._together]) for first in range(0, len(batches), self._together)]
            rows.append(torch.cat(parts))
        return {"task": torch.stack(rows).numpy()}

    def _scores(self, batches: range) -> Tensor:
        tokens, expected = (torch.cat([kept[index] for index in batches]) for kept in (self._tokens, self._expected))
        found = self._supernet(tokens).log_softmax(-1)
        return -(expected.exp() * (expected - found)).sum(-1).view(len(batches), -1).double().mean(1)


class Search:
    """One of the searches, a round at a time."""

    def __init__(self, evaluator: Evaluator, budget: Budget, width: int) -> None:
        self.evaluator, self.seconds = evaluator, 0.0
        self.scores: dict[Placement, float] = {}
        self._budget, self._rounds = budget, STRATEGIES["beam"](width=width, initial_width=width, refine=False).rounds(budget)
        self._ask = next(self._rounds, None)

    def advance(self) -> bool:
        """Score what is asked for; whether there was anything."""
        if self._ask is None:
            return False
        started = time.process_time()
        found = [float(score) for score in self.evaluator(self._ask.placements, keep=self._ask.keep)]
        self.seconds += time.process_time() - started
        self.scores.update(zip(self._ask.placements, found, strict=True))
        try:
            self._ask = self._rounds.send(found)
        except StopIteration:
            self._ask = None
        return True

    def chosen(self) -> Placement:
        """The best within the budget."""
        return max(filter(self._budget.admits, self.scores), key=lambda placement: self.scores[placement])


def supernet_whose_layers_differ(n_layers: int, d_model: int, generator: np.random.Generator) -> Supernet:
    """Random weights, each layer's mixers scaled by how much the layer matters."""
    block = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": MIXERS}, "mlp": {"kind": "swiglu"}}
    supernet = Supernet(RackSpec(vocab_size=VOCABULARY, d_model=d_model, stacks=[{"n_blocks": n_layers, "block": block}]))
    weights = 0.7 ** generator.permutation(n_layers)
    with torch.no_grad():
        supernet.rack.embedding.weight.mul_(50)
        for choice, weight in zip(supernet.choices, weights, strict=True):
            for _, mixer in choice.named():
                mixer.output.weight.mul_(float(weight))
    return supernet.eval()


def report(alone: Search, trie: Search, race: Search) -> None:
    """Print the ratios."""
    counts = trie.evaluator.counts
    fewer, n_all = counts.n_layer_evaluations_alone / counts.n_layer_evaluations, counts.n_batch_evaluations
    saved = race.evaluator.counts.n_saved_by_race
    difference = max(abs(trie.scores[placement] - score) for placement, score in alone.scores.items())
    span = max(alone.scores.values()) - min(alone.scores.values())
    print(f"{len(alone.scores)} placements scored; seconds and times faster than one at a time")
    print(f"one at a time  {alone.seconds:7.1f}")
    print(f"walk           {trie.seconds:7.1f}  {alone.seconds / trie.seconds:5.2f}   block evaluations: {fewer:.2f} times fewer")
    print(
        f"walk and race  {race.seconds:7.1f}  {alone.seconds / race.seconds:5.2f}   batch evaluations: {saved / n_all:.0%} saved"
    )
    print(f"scores of the walk differ by at most {difference:.1e}, and span {span:.1e}")
    print(f"all three found the same placement: {alone.chosen() == trie.chosen() == race.chosen()} ({', '.join(alone.chosen())})")


def main() -> None:
    """Search three times and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=4, help="of the beam")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=32)
    parser.add_argument("--seed", type=int, default=3, help="of weights and of which layers matter; 3 shares as many as most do")
    parser.add_argument("--together", type=int, default=8, help="batches in one pass, where placements go one at a time")
    options = parser.parse_args()
    use_one_thread()
    generator = np.random.default_rng(options.seed)
    supernet = supernet_whose_layers_differ(options.layers, options.d_model, generator)
    drawn = generator.integers(0, VOCABULARY, size=(options.batches, options.batch_size, options.seq_len))
    batches = [(tokens, tokens) for tokens in torch.tensor(drawn)]  # a divergence needs no targets
    evaluators = [
        Evaluator(OneAtATime(supernet, batches, options.together), n_batches=len(batches), shares={"task": 1.0}, key="alone"),
        *(
            SupernetEvaluator(supernet, {"task": batches}, {"task": 1.0}, data_fingerprint="", metric="kl", race=race)
            for race in (False, True)
        ),
    ]
    searches = [
        Search(evaluator, Budget.of({"attention": 4, "delta": 0}, supernet.space), options.width) for evaluator in evaluators
    ]
    while any([search.advance() for search in searches]):  # noqa: C419 - all of them, not only the first
        pass
    batch = f"{options.batches} batches of {options.batch_size} x {options.seq_len}"
    shape = f"{batch}, {options.layers} layers of width {options.d_model}"
    print(f"{hardware()}, torch {torch.__version__}, one thread, {shape}")
    report(*searches)


if __name__ == "__main__":
    main()
