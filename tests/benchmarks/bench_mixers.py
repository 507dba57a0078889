"""Forward and backward time of every layer of the MAD suite beside mh-attention's. `python -m tests.benchmarks.bench_mixers`."""

import argparse
import time

import torch

from models.spec.short_forms import layer, layer_names

D_MODEL = 128
REFERENCE = "mh-attention"


def milliseconds(name: str, batch_size: int, seq_len: int, n_runs: int) -> float:
    """The best of some runs, after one to warm up."""
    registry, value = layer(name)
    module = registry.build(registry.part(value), d_model=D_MODEL, max_length=seq_len)
    x = torch.randn(batch_size, seq_len, D_MODEL, requires_grad=True)
    seconds = []
    for _ in range(n_runs + 1):
        start = time.perf_counter()
        module(x).sum().backward()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--time", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    times = {name: milliseconds(name, options.batch, options.time, options.runs) for name in layer_names()}
    print(f"batch {options.batch}, time {options.time}, width {D_MODEL}, threads {options.threads}")
    print(f"{'layer':28}{'ms':>9}{'x ' + REFERENCE:>16}")
    for name, own in times.items():
        print(f"{name:28}{own:9.0f}{own / times[REFERENCE]:16.2f}")


if __name__ == "__main__":
    main()
