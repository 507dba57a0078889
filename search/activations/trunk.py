"""Trunk: a frozen module as a function of its inputs, and the hash that notices a change of its weights."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from configs import ConfigError

Forward = Callable[[Tensor], Tensor]
"""Inputs [batch, ...] -> hidden states [batch, time, d_model]."""


def trunk_hash(module: nn.Module) -> str:
    """Twelve hexadecimal digits of every parameter and buffer, by name and to the bit, on whatever device they lie.

    Adapters and quantised bytes are among them, buffers that a checkpoint leaves out too. What no tensor says (a window, the
    scale of an adapter) is not: that is the `architecture` of a `CacheKey`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(module), key=lambda pair: pair[0]):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:12]


def has_tensors_of(module: nn.Module, part: nn.Module) -> bool:
    """Whether each parameter and buffer of a part is in the module too, to the bit, whatever it is called there."""
    own, others = ({hashlib.sha256(_bytes(tensor)).digest() for _, tensor in _tensors(given)} for given in (module, part))
    return others <= own


def _bytes(tensor: Tensor) -> memoryview:
    """What a tensor holds, as bytes: NumPy has no bfloat16. A scalar has no last dimension to view, so all are flat."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    """Dropout off; afterwards every part is in the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _padded(rows: Tensor, size: int) -> Tensor:
    n_missing = size - len(rows)
    return torch.cat([rows, rows[-1:].expand(n_missing, *rows.shape[1:])]) if n_missing else rows


class Trunk:
    """A module as a function of the inputs alone: in eval mode, without gradients, outside of any autocast around it.

    A row has the same bits in whatever batch it comes: `forward` sees `rows_per_forward` rows at a time, never more or fewer,
    because kernels round by the shape of what they are given. With 1 that holds on any machine; more are faster on a GPU, and
    hold where kernels treat all rows of a batch alike. What `forward` is to compute under autocast it opens itself.

    Args:
        module: what is hashed, and put in eval mode.
        forward: inputs [rows_per_forward, ...] -> [rows_per_forward, time, d_model]; by default the module itself.
        rows_per_forward: rows of a call; the last one of what is missing is repeated to fill it.
    """

    def __init__(self, module: nn.Module, forward: Forward | None = None, *, rows_per_forward: int = 1) -> None:
        if rows_per_forward < 1:
            raise ValueError(f"rows_per_forward = {rows_per_forward} must be at least 1")
        self.module, self.rows_per_forward = module, rows_per_forward
        self.forward: Forward = module if forward is None else forward
        self.n_forwards = 0
        self.computes_in: torch.dtype | None = None  # before a first call, nobody knows
        self.hash = trunk_hash(module)
        self._seen = _Seen(module)

    def __call__(
        self, *inputs: Tensor, shape: tuple[int, int], dtype: torch.dtype, forward: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Hidden states [batch, time, d_model] of inputs [batch, ...], on the trunk's device; `shape` is [time, d_model].

        `forward` is another way to them than the trunk's own, and may take more than one kind of inputs.
        """
        size, forward = self.rows_per_forward, forward or self.forward
        chunks = []
        device = next((tensor.device for _, tensor in _tensors(self.module)), inputs[0].device)
        with torch.no_grad(), _in_eval(self.module), torch.autocast(device.type, enabled=False):
            for rows in zip(*(kind.split(size) for kind in inputs), strict=True):
                n_rows = len(rows[0])
                hidden = forward(*(_padded(kind, size).to(device) for kind in rows))
                self.n_forwards += 1
                if hidden.shape != (size, *shape):
                    raise ValueError(f"the trunk gives hidden states {list(hidden.shape)}; the cache is of {[size, *shape]}")
                self.computes_in = hidden.dtype
                chunks.append(hidden[:n_rows].to(dtype))
            return torch.cat(chunks)  # in here too: autocast has an opinion on the type of what is put together

    def refuse_if_changed(self, *, thoroughly: bool = False) -> None:
        """Raise if the module is not the one that was hashed any more.

        Without `thoroughly`, tensors are hashed anew only if torch says that they were written to or exchanged; a write through
        `.data` it does not see.

        Raises:
            ConfigError: with both hashes.
        """
        if not thoroughly and self._seen.is_as_it_was():
            return
        found = trunk_hash(self.module)
        if found != self.hash:
            raise ConfigError(
                f"the trunk has changed: its hash was {self.hash} when its hidden states were cached, and is {found} now; "
                "freeze what changed (adapters count), or make a new cache for the trunk as it is"
            )
        self._seen = _Seen(self.module)


class _Seen:
    """A module as it was at some time: which objects stood where, and what torch counts up when a tensor is written to.

    To be asked at every step, so it goes by a list and not through the module.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        owners = [owner for part in parts for owner in (part._modules, part._parameters, part._buffers)]  # noqa: SLF001
        self._sizes = [(owner, len(owner)) for owner in owners]
        self._places = [(owner, name, each, _version(each)) for owner in owners for name, each in owner.items()]

    def is_as_it_was(self) -> bool:
        """Whether nothing has been exchanged, added or written to since."""
        return all(len(owner) == size for owner, size in self._sizes) and all(
            owner.get(name) is each and _version(each) == version for owner, name, each, version in self._places
        )


def _version(each: object) -> tuple[int, int] | None:
    return (each.data_ptr(), each._version) if isinstance(each, Tensor) else None  # noqa: SLF001
