"""Runs functions in processes of their own: as ranks that are connected by gloo, as the workers of a run are, or alone."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, for all processes; the first optimizer of a process would import `torch._dynamo`.
CONTEXT.set_forkserver_preload(["pytest", "torch", "torch._dynamo", "torch.distributed.fsdp", "search.jobs.supernet.job"])


def started(function, *arguments):
    """A process of its own that calls `function(*arguments)`, a function of a module; it ends with status 1 if that raises."""
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def on_ranks(function, n_ranks: int, folder: Path, *arguments) -> list:
    """What `function(*arguments)`, a function of a module, returns on each rank."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [started(_rank, function, rank, n_ranks, folder, arguments) for rank in range(n_ranks)]
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
