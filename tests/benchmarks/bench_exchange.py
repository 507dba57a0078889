"""Exchanging the active gradients against torch's DDP, on two processes; `python -m tests.benchmarks.bench_exchange`.

Both sides run the same forward and backward passes of the same placements, in turn; each figure is the median over the rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import RackSpec, Supernet
from search.training.devices import hardware
from search.training.ranks import Ranks
from tests.search.ranks import on_ranks

MIXERS = {
    "attention": {"kind": "attention", "n_heads": 4},
    "window": {"kind": "attention", "n_heads": 4, "window": 16},
    "gdn": {"kind": "gated_delta_net", "n_heads": 4},
    "linear": {"kind": "linear_attention", "n_heads": 4},
}


def make_supernet(d_model: int, n_blocks: int) -> Supernet:
    """All four mixers in every layer."""
    mixer = {"kind": "stochastic", "main": "attention", "mixers": MIXERS}
    stack = {"n_blocks": n_blocks, "block": {"mixer": mixer, "mlp": {"kind": "swiglu"}}}
    return Supernet(RackSpec.model_validate({"vocab_size": 256, "d_model": d_model, "stacks": [stack]}))


def add_up(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A bucket of DDP's, reduced where `counted` sees it."""
    del state
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes of each tensor that is reduced within the block."""
    sizes: list[int] = []
    with mock.patch.object(dist, "all_reduce", side_effect=dist.all_reduce) as reduce:
        yield sizes
    sizes += [call.args[0].nbytes for call in reduce.call_args_list]


def measure(d_model: int, n_blocks: int, rows: int, length: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds and mean bytes of a step, by the way of exchanging, on one rank."""
    ranks = Ranks()
    ours, theirs, watched, alone = (make_supernet(d_model, n_blocks) for _ in range(4))
    ddp = DistributedDataParallel(theirs, find_unused_parameters=True)
    watched_ddp = DistributedDataParallel(watched, find_unused_parameters=True)
    watched_ddp.register_comm_hook(None, add_up)
    ways: dict[str, tuple[nn.Module, Supernet]] = {
        "exchange": (ours, ours),
        "ddp": (ddp, theirs),
        "ddp, bytes": (watched_ddp, watched),
        "no exchange": (alone, alone),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sent: dict[str, list[int]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        generator = torch.Generator().manual_seed(number)
        placement = tuple(list(MIXERS)[int(index)] for index in torch.randint(len(MIXERS), (n_blocks,), generator=generator))
        tokens = torch.randint(256, (rows, length), generator=generator)
        for name, (call, supernet) in ways.items():
            supernet.activate(placement)
            dist.barrier()
            with counted() as sizes:
                started = time.perf_counter()
                call(tokens).square().mean().backward()
                if name == "exchange":
                    ranks.exchange(supernet.parameters())
                dist.barrier()
                seconds[name].append(time.perf_counter() - started)
            sent[name].append(sum(sizes))
            supernet.zero_grad()
    return {name: (statistics.median(seconds[name][2:]), statistics.mean(sent[name])) for name in ways}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2, help="of each process")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    sizes = (arguments.d_model, arguments.blocks, arguments.rows, arguments.length, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        results = on_ranks(measure, 2, Path(folder), *sizes)[0]
    (ours, active), (theirs, _), (_, everything), (alone, _) = results.values()
    print(
        f"two gloo processes on {hardware()}; {arguments.blocks} blocks of d_model {arguments.d_model}, {len(MIXERS)} mixers each"
    )
    for name, first, second, unit, scale in (
        ("step, exchange of the active gradients / DDP", ours, theirs, "ms", 1e3),
        ("  of which beyond the step without exchange", ours - alone, theirs - alone, "ms", 1e3),
        ("bytes a step, exchange / DDP", active, everything, "MiB", 2**-20),
    ):
        print(f"{name:46} {first / second:6.3f};  {first * scale:8.1f} {unit} against {second * scale:8.1f} {unit}")


if __name__ == "__main__":
    main()
