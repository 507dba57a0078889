"""What the training loop costs beside a bare one, and what packing a grid gains; `python -m tests.benchmarks.bench_speed`.

Each figure is a ratio of two things measured in turn in one run; the median over the rounds is the one to quote.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from models import RackSpec
from search.training.batches import EpochBatches
from search.training.devices import autocast, hardware, resolve_device, use_one_thread
from search.training.loop import train
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tasks import TASKS, draw

LAYERS = ["mh-attention", "swiglu", "mh-attention", "swiglu"]
GRID = [(lr, weight_decay) for lr in (1e-4, 5e-4, 1e-3) for weight_decay in (0.0, 0.1)]


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, with the device idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(name: str, ours: Callable[[], object], other: Callable[[], object], rounds: int, device: torch.device) -> None:
    """Time the two in turn and print the ratio ours / other."""
    ours(), other()
    pairs = [(timed(ours, device), timed(other, device)) for _ in range(rounds)]
    ratios = sorted(first / second for first, second in pairs)
    seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
    print(
        f"{name:44} {statistics.median(ratios):6.3f}  ({ratios[0]:.3f} to {ratios[-1]:.3f});"
        f"  {seconds[0] * 1000:9.1f} ms against {seconds[1] * 1000:9.1f} ms"
    )


def no_metrics(pack: object, members: list[TrainState]) -> dict[str, torch.Tensor]:
    """Stands for the evaluation, which both sides leave out."""
    del pack
    return {name: torch.zeros(len(members)) for name in ("accuracy", "loss")}


def bare_loop(model: nn.Module, batches: EpochBatches, device: torch.device, n_steps: int) -> None:
    """The same training as one would write it by hand."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1, fused=True)
    for step in range(n_steps):
        inputs, targets = batches[step]
        with autocast(device, "auto"):
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--steps", type=int, default=5, help="training steps in each timing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    use_one_thread()
    device, n_steps = resolve_device("auto"), arguments.steps
    task = TASKS["in_context_recall"]()
    examples = draw(task, arguments.batch_size * n_steps, seed=0, split="train")
    batches = EpochBatches(examples, arguments.batch_size, seed=0, device=device)
    spec = RackSpec(d_model=128, layers=arguments.layers, vocab_size=task.vocab_size, max_length=task.seq_len)
    models = [spec.build(seed).to(device) for seed in range(len(GRID))]

    def loop(members: list[TrainState]) -> None:
        train(members, TrainSpec(), n_steps=n_steps, eval_every=n_steps, evaluate=no_metrics)

    def members(chosen: list[nn.Module]) -> list[TrainState]:
        return [TrainState(model, batches, lr, decay) for model, (lr, decay) in zip(chosen, GRID, strict=False)]

    def separately() -> None:
        for member in members(models):
            loop([member])

    print(f"{hardware()}, torch {torch.__version__}, {' '.join(arguments.layers)}, batch {arguments.batch_size}, {n_steps} steps")
    print(f"{'ratio of times':44} median")
    compare("our loop / bare loop", lambda: loop(members(models[:1])), lambda: bare_loop(models[0], batches, device, n_steps),
            arguments.rounds, device)  # fmt: skip
    compare("grid of 6 packed / one after the other", lambda: loop(members(models)), separately, arguments.rounds, device)


if __name__ == "__main__":
    main()
