"""Every mixer beside attention: scores of a finished run, sizes, and step time. For the README, in Markdown.

`python -m launch mad configs/mad_mixers.yaml out=runs/mixers && python -m tests.benchmarks.bench_zoo runs/mixers`
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from configs import load
from configs.records import read_json
from search.jobs.mad.spec import MadSpec

REFERENCE = "attention"


def stepper(spec, task, batch_size):
    """A function that takes one training step's forward and backward pass of a rack on the task's shapes, and returns seconds."""
    rack = spec.build().train()
    tokens = torch.randint(spec.vocab_size, (batch_size, task.seq_len))

    def step():
        start = time.perf_counter()
        rack(tokens).square().mean().backward()
        return time.perf_counter() - start

    return step


def ratios(racks, task, *, batch_size, n_rounds):
    """Step time over the reference's, in turn with it: the median of the rounds after one to warm up."""
    reference = stepper(racks[REFERENCE], task, batch_size)
    reference()
    found = {}
    for name, rack in racks.items():
        step = stepper(rack, task, batch_size)
        step()
        found[name] = statistics.median(step() / reference() for _ in range(n_rounds))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run of `mad`")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = load(MadSpec, options.run / "spec.json")
    results = read_json(options.run / "results.json")
    first = {}
    for setting in spec.settings():
        first.setdefault(setting.architecture, setting.spec)
    task = next(iter(first.values())).setting.instance()
    racks = {name: trial.rack for name, trial in first.items()}
    times = ratios(racks, task, batch_size=spec.batch_size, n_rounds=options.rounds)
    tasks = list(spec.tasks)
    print(f"| mixer | {' | '.join(task.replace('-', ' ') for task in tasks)} | parameters | state | step time |")
    print(f"|---|{'---:|' * (len(tasks) + 3)}")
    for name, found in results["scores"].items():
        scores, sizes = " | ".join(f"{found[task]:.3f}" for task in tasks), results["sizes"][name]
        print(f"| {name} | {scores} | {sizes['n_parameters']:,} | {sizes['state']:,} | {times[name]:.2f} |")


if __name__ == "__main__":
    main()
