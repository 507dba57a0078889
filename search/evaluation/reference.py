"""The reference that KL scores are measured from: logits of the main placement, rerun or kept."""

from collections.abc import Callable, Iterable
from typing import Self

import torch
from torch import Tensor

from models import Supernet

Reference = Callable[[Tensor], Tensor]
"""Tokens [batch, time] -> logits [batch, time, vocab_size]."""


def main_of(supernet: Supernet) -> Reference:
    """The main placement of a supernet."""

    def main(tokens: Tensor) -> Tensor:
        supernet.activate(supernet.main)
        return supernet(tokens)

    return main


class KeptLogits:
    """What a reference says of some sequences; it does not run again. `n_bytes` are kept."""

    def __init__(self, logits: dict[bytes, Tensor]) -> None:
        self._logits = logits
        self.n_bytes = sum(each.nbytes for each in logits.values())

    @classmethod
    def of(cls, reference: Reference, batches: Iterable[Tensor], max_bytes: int) -> Self | None:
        """Run the reference over batches of tokens; None, and nothing kept, if its logits are more than `max_bytes`."""
        logits: dict[bytes, Tensor] = {}
        n_bytes = 0
        for tokens in batches:
            found = reference(tokens)
            n_bytes += found.nbytes
            if n_bytes > max_bytes:
                return None
            logits |= zip(_keys(tokens), found, strict=True)
        return cls(logits)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The logits of the sequences in a batch, which must be among those that were given."""
        return torch.stack([self._logits[key] for key in _keys(tokens)])


def _keys(tokens: Tensor) -> list[bytes]:
    """A row of a batch is known by its tokens: the walk cuts batches wherever it must."""
    return [row.tobytes() for row in tokens.cpu().numpy()]
