"""Auxiliary losses and metrics that parts report during the forward pass (MoE balance, z-loss)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Reports:
    """What was reported while a collection was open, by name.

    `losses` are values times their weights, and a name that several parts report is summed: training adds them to its own loss.
    `metrics` are the values themselves, without gradients, and their mean over the parts that report them.
    """

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self._values: dict[str, list[Tensor]] = {}

    @property
    def metrics(self) -> dict[str, Tensor]:
        """The mean of what was reported by each name."""
        return {name: torch.stack(values).mean(0) for name, values in self._values.items()}

    def add(self, losses: Mapping[str, Tensor], metrics: Mapping[str, Tensor]) -> None:
        """Take in weighted losses, and metrics, by name."""
        for name, loss in losses.items():
            self.losses[name] = self.losses[name] + loss if name in self.losses else loss
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value.detach())

    def added_to(self, loss: Tensor, share: float = 1.0) -> Tensor:
        """A loss and the reported ones, which count for the `share` of a batch that they are of; without any the same tensor."""
        for reported in self.losses.values():
            loss = loss + share * reported
        return loss


_innermost: ContextVar[Reports | None] = ContextVar("innermost", default=None)


@contextmanager
def collecting() -> Iterator[Reports]:
    """Collect what is reported in the block; a collection inside another one keeps its reports to itself.

    Under `torch.func.vmap` the block must lie inside of the mapped function, which returns what it found beside its result:
    tensors reported there are of no use outside. `pass_on` then gives them to the collection around the mapping.
    """
    found = Reports()
    token = _innermost.set(found)
    try:
        yield found
    finally:
        _innermost.reset(token)


def is_collecting() -> bool:
    """Whether a report is heard; where it is not, its value need not be computed."""
    return _innermost.get() is not None


def report(name: str, value: Tensor, *, weight: float = 0.0) -> None:
    """Tell the innermost collection, if there is one, of a scalar; with a weight, it is a loss times that.

    Raises:
        ValueError: if the value is no scalar: summed into the loss of several models, it would be taken for a loss of each.
    """
    if value.dim():
        raise ValueError(f"what is reported as '{name}' must be a scalar, not of shape {list(value.shape)}")
    pass_on({name: weight * value} if weight else {}, {name: value})


def pass_on(losses: Mapping[str, Tensor], metrics: Mapping[str, Tensor]) -> None:
    """Tell the innermost collection, if there is one, what another collection has found, of any shape."""
    if (found := _innermost.get()) is not None:
        found.add(losses, metrics)
