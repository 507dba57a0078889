"""Runs a function on several processes that are connected by gloo, as the workers of a training run are."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing


def on_ranks(function, n_ranks: int, folder: Path, *arguments) -> list:
    """What `function(*arguments)`, a function of a module, returns on each rank."""
    context = multiprocessing.get_context("forkserver")  # torch is imported once, for all of them
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "models", "search.parallel"])
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_rank, args=(function, rank, n_ranks, folder, arguments), daemon=True) for rank in range(n_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, f"a rank ended with status {process.exitcode}"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n_ranks)]


def _rank(function, rank: int, n_ranks: int, folder: Path, arguments) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=n_ranks)
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()
