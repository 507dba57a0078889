"""What a step of a supernet costs beside that of the same fixed subnet; `python -m tests.benchmarks.bench_supernet`.

Both are trained by the same loop and timed in turn in one run, in CPU seconds of one thread, so that what else the machine does
counts for little; the median over the rounds is the figure to quote. `the same` compares the subnet with itself: the noise.
The optimizer is measured apart as well, with and without parameters that have no gradient.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from models import Supernet
from models.spec.placement import placement_text
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.step import SupernetStep
from search.training.devices import hardware, use_one_thread
from search.training.loop import train
from search.training.mixture import Mixture
from search.training.optimizer import make_optimizer
from search.training.ranks import Ranks
from search.training.state import TrainState

MIXERS = {
    "attention": {"kind": "attention", "n_heads": 4},
    "window": {"kind": "attention", "n_heads": 4, "window": 32},
    "gdn": {"kind": "gated_delta_net", "n_heads": 4},
    "linear": {"kind": "linear_attention", "n_heads": 4},
}
CPU = torch.device("cpu")


def space(arguments: argparse.Namespace) -> SupernetSpec:
    """A supernet of four mixers in every layer, on one recall task."""
    block = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": MIXERS}, "mlp": {"kind": "swiglu"}}
    task = {"kind": "in_context_recall", "vocab_size": 32, "seq_len": arguments.seq_len}
    return SupernetSpec.model_validate(
        {
            "rack": {"d_model": arguments.d_model, "stacks": [{"n_blocks": arguments.n_layers, "block": block}]},
            "data": {"tasks": {"recall": {"task": task}}, "batch_size": arguments.batch_size},
            "n_steps": arguments.steps,
            "train": {"device": "cpu", "grad_clip": 1.0},
        }
    )


def steps(spec: SupernetSpec, model: Supernet, n_steps: int) -> float:
    """CPU seconds of so many steps, without evaluation."""
    member = TrainState(model, Mixture(spec.data, seed=0, device=CPU), spec.lr, spec.weight_decay, keeps_best=False)
    gradients = SupernetStep(spec, Ranks())
    started = time.process_time()
    train([member], spec.train, n_steps=n_steps, eval_every=n_steps, gradients=gradients, evaluate=unmeasured)
    return time.process_time() - started


def unmeasured(pack: object, members: list[TrainState]) -> dict[str, torch.Tensor]:
    """Stands for the evaluation, which both sides leave out."""
    del pack
    return {name: torch.zeros(len(members)) for name in ("accuracy", "loss")}


def compare(name: str, ours: Callable[[], float], other: Callable[[], float], rounds: int) -> None:
    """Measure the two in turn and print the ratio ours / other."""
    ours(), other()
    pairs = [(ours(), other()) for _ in range(rounds)]
    ratios = sorted(first / second for first, second in pairs)
    seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
    print(
        f"{name:52} {statistics.median(ratios):6.3f}  ({ratios[0]:.3f} to {ratios[-1]:.3f});"
        f"  {seconds[0] * 1000:9.2f} ms against {seconds[1] * 1000:9.2f} ms"
    )


def optimizer_step(spec: SupernetSpec, model: Supernet) -> float:
    """CPU seconds of one optimizer step and of taking the gradients away, with gradients where the main placement has some."""
    member = TrainState(model, Mixture(spec.data, seed=0, device=CPU), spec.lr, spec.weight_decay)
    optimizer = make_optimizer([member], spec.train)
    seconds = []
    for step in range(3):
        SupernetStep(spec, Ranks())(None, [member], step)  # type: ignore[arg-type]
        started = time.process_time()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    return min(seconds)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--n-layers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="training steps in each timing")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    use_one_thread()
    spec = space(arguments)
    names = list(MIXERS)
    placement = tuple(names[layer % len(names)] for layer in range(arguments.n_layers))
    sampler = {"kind": "fixed", "placements": {placement_text(placement): 1.0}}
    drawn, placed = SupernetSpec.model_validate({**spec.to_dict(), "sampler": sampler}), spec.placed(placement)
    whole, part = Supernet(drawn.rack), Supernet(placed.rack)
    part.rack.load_state_dict(whole.extract(placement).state_dict())
    print(f"{hardware()}, torch {torch.__version__}, one thread; {placement_text(placement)}")
    for name, model in (("supernet", whole), ("subnet", part)):
        sizes = [parameter.numel() for parameter in model.parameters()]
        print(f"{name}: {sum(sizes):,} parameters in {len(sizes)} tensors")
    print(f"{'ratio of CPU seconds':52} median")
    n, rounds = arguments.steps, arguments.rounds
    compare("step of the supernet / of the fixed subnet", lambda: steps(drawn, whole, n), lambda: steps(placed, part, n), rounds)
    compare("the same: step of the fixed subnet / itself", lambda: steps(placed, part, n), lambda: steps(placed, part, n), rounds)
    compare("optimizer alone", lambda: optimizer_step(drawn, whole), lambda: optimizer_step(placed, part), rounds)


if __name__ == "__main__":
    main()
