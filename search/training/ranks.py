"""The processes that train one model together: gradients, sums and agreement between them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20
"""Gradients travel in flat buckets of about this size: a call for each tensor would cost more than the bytes do."""


class Ranks:
    """This process among those that train one model together; alone (rank 0 of 1) where torch.distributed is not initialised.

    A batch's weights refer to the whole batch, so losses and gradients of ranks are added up, never averaged. To be made by
    all ranks at the same time.
    """

    def __init__(self) -> None:
        is_alone = not dist.is_initialized()
        self.rank = 0 if is_alone else dist.get_rank()
        self.n_ranks = 1 if is_alone else dist.get_world_size()
        self.is_main = self.rank == 0
        self.is_stopping = False
        self._wants_to_stop = False
        # What the host has to know goes from host to host, so that nothing waits for the device.
        self._hosts = None if is_alone or dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def stop(self) -> None:
        """Have all ranks stop: `is_stopping` becomes true on all of them after the same exchange; alone, at once."""
        self._wants_to_stop = True
        self.is_stopping = self.n_ranks == 1

    def exchange(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient the sum of those of all ranks.

        A parameter without a gradient on every rank, such as those of parts that are not active, is left alone and costs
        nothing: it is not communicated and its gradient stays None. One that has a gradient on some ranks only (an expert
        that none of this rank's tokens chose) counts as zero on the others, as in one process with the whole batch.
        Sharded parameters are left out: their gradients were added up when they were made.

        Beside torch's DDP, which has to look for unused parameters and sends zeros for them, this sends half the bytes with four
        mixers a layer, in a step of about the same length (`tests/benchmarks/bench_exchange.py`).

        Args:
            parameters: the same ones in the same order on all ranks.
        """
        if self.n_ranks == 1:
            return
        whole = [parameter for parameter in parameters if not hasattr(parameter, "device_mesh")]
        pending = []
        for bucket in _buckets(self._with_gradient_anywhere(whole)):
            flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
            pending.append(dist.all_reduce(flat, async_op=True))
            pieces = flat.split([parameter.numel() for parameter in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)
        for work in pending:
            work.wait()

    def check_same(self, text: str) -> None:
        """RuntimeError with the differing values, if this text is not the same on all ranks."""
        if self.n_ranks == 1:
            return
        texts: list[str] = [""] * self.n_ranks
        dist.all_gather_object(texts, text, group=self._hosts)
        for rank, other in enumerate(texts):
            if other != texts[0]:
                raise RuntimeError(f"ranks disagree: rank 0 has {texts[0]}, rank {rank} has {other}")

    def same(self, value: Any) -> Any:
        """The main rank's value, on every rank."""
        values = [value]
        if self.n_ranks > 1:
            dist.broadcast_object_list(values, group=self._hosts)
        return values[0]

    def total(self, values: Tensor) -> Tensor:
        """The sum of the ranks' values, of the same shape, on every rank."""
        summed = values.detach().clone()
        if self.n_ranks > 1:
            dist.all_reduce(summed)
        return summed

    def _with_gradient_anywhere(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those that have a gradient on some rank; what ranks want to tell each other goes with the question."""
        flags = torch.tensor([self._wants_to_stop, *(parameter.grad is not None for parameter in parameters)], dtype=torch.uint8)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._hosts)
        self.is_stopping = bool(flags[0])
        return [parameter for parameter, has in zip(parameters, flags[1:].tolist(), strict=True) if has]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype and device each, in order; more than BUCKET_BYTES only where a single tensor is."""
    open_buckets: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    n_bytes: dict[tuple[torch.dtype, torch.device], int] = {}
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        n_bytes[kind] = n_bytes.get(kind, 0) + parameter.nbytes
        if kind in open_buckets and n_bytes[kind] > BUCKET_BYTES:
            yield open_buckets.pop(kind)
            n_bytes[kind] = parameter.nbytes
        open_buckets.setdefault(kind, []).append(parameter)
    yield from open_buckets.values()
