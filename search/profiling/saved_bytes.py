"""Counts the bytes that forward passes keep for their backward passes, on any device."""

import weakref
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn


class SavedBytes:
    """Counts, inside a `with` block, the bytes of storages that are saved for backward, for as long as they are; no weights.

    `peak` is the most at any time: where parts go backward one after the other, that of the largest part.
    """

    def __init__(self, model: nn.Module) -> None:
        self.peak = self._live = 0
        self._weights = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._n_held: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> Any:
        address = _address(tensor)
        if address in self._weights:
            return tensor
        held = _Held(tensor)  # as long as it is there, the storage is, and its address no other's
        self._n_held[address] = self._n_held.get(address, 0) + 1
        if self._n_held[address] == 1:
            self._live += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self._live)
        weakref.finalize(held, self._release, address, tensor.untyped_storage().nbytes())
        return held

    def _release(self, address: int, n_bytes: int) -> None:
        self._n_held[address] -= 1
        if not self._n_held[address]:
            del self._n_held[address]
            self._live -= n_bytes


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _unpack(saved: Any) -> Tensor:
    tensor: Tensor = saved.tensor if isinstance(saved, _Held) else saved
    return tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - the identity that survives its Python wrappers
