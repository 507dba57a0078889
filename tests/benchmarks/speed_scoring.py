"""Scores of ours beside bare passes and beside one placement at a time, as pairs for `bench_speed`."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from models import Supernet
from search.budget import Budget
from search.evaluation.evaluator import Evaluator
from search.evaluation.score_batches import batch_scorer
from search.evaluation.supernet_evaluator import SupernetEvaluator
from search.training.devices import autocast, resolve_device
from tasks import IGNORED
from tests.benchmarks.bench_evaluator import VOCABULARY, OneAtATime, Search, supernet_whose_layers_differ
from tests.benchmarks.speed_training import Pair, Pairs, smollm2


def pass_in_bf16() -> Pair:
    """Six layers of SmolLM2 on 8 x 256 tokens, beside the same in float32."""
    device = resolve_device("auto")
    model, tokens = smollm2(6, vocab_size=64).build().to(device).eval(), torch.zeros(8, 256, dtype=torch.long, device=device)

    @torch.no_grad()
    def run(precision: str) -> None:
        with autocast(device, precision):
            model.run(model.embed(tokens))

    return partial(run, "bf16"), partial(run, "fp32")


def one_placement(precision: str) -> Pair:
    """KL of one placement on 2 x 256 tokens, 64 positions of each asked, beside a pass and a softmax at these positions."""
    device = resolve_device("auto")
    net = Supernet(smollm2(30, choices={"window": {"kind": "attention", "n_heads": 9, "n_kv_heads": 3, "window": 32}})).eval()
    net.requires_grad_(requires_grad=False).to(device)
    tokens = torch.randint(49_152, (2, 256), generator=torch.Generator().manual_seed(0)).to(device)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, 3::4] = tokens[:, 3::4]
    batches = {"task": [(tokens, targets)]}
    placement = tuple("window" if layer % 2 else "attention" for layer in range(30))
    score = batch_scorer(net, batches, "kl", precision=precision)
    rack, asked = net.extract(placement).eval(), targets != IGNORED

    @torch.no_grad()
    def bare() -> torch.Tensor:
        with autocast(device, precision):
            return rack.read_out(rack.run(rack.embed(tokens))[asked][None]).float().log_softmax(-1)

    return lambda: score([placement], batches), bare


def walk(n_layers: int, width: int, n_batches: int) -> Pair:
    """A beam search of 4 layers of attention by the walk, beside one pass a placement, 8 batches of 4 x 32 together."""
    generator = np.random.default_rng(3)
    net = supernet_whose_layers_differ(n_layers, 64, generator)
    drawn = generator.integers(0, VOCABULARY, size=(n_batches, 4, 32))
    batches = [(tokens, tokens) for tokens in torch.tensor(drawn)]
    budget = Budget.of({"attention": 4, "delta": 0}, net.space)

    def search(make: Callable[[], Evaluator]) -> None:
        rounds = Search(make(), budget, width)
        while rounds.advance():
            pass

    alone = OneAtATime(net, batches, 8)
    return (
        lambda: search(lambda: SupernetEvaluator(net, {"task": batches}, {"task": 1.0}, data_fingerprint="", metric="kl")),
        lambda: search(lambda: Evaluator(alone, n_batches=len(batches), shares={"task": 1.0}, key="alone")),
    )


def pairs() -> Pairs:
    """What makes each pair, by name, and the ratio that is wanted at most."""
    return {
        "pass in bf16 / in float32, 6 layers of SmolLM2, 8 x 256": (pass_in_bf16, 1 / 3),
        "one placement of SmolLM2 / bare pass and softmax, float32": (partial(one_placement, "fp32"), 1.15),
        "one placement of SmolLM2 / bare pass and softmax, bf16": (partial(one_placement, "bf16"), 1.15),
        "walk / one at a time, 12 layers, beam of 1": (partial(walk, 12, 1, 32), 1 / 1.5),
        "walk / one at a time, 24 layers, beam of 4": (partial(walk, 24, 4, 8), 1 / 2),
    }
