"""The reference that KL scores are measured from: what the main placement, or another model, predicts; run again or kept."""

from collections.abc import Callable, Iterable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from models import Supernet
from search.training.batches import Batch
from tasks import IGNORED

TOGETHER = 1024
"""Positions that are few enough for one pass, whatever the model."""

Reference = Callable[[Tensor, Tensor], Tensor]
"""Tokens [batch, time] and which positions are asked [batch, time] bool -> log probabilities of those [asked, vocab_size]."""


def log_probabilities(logits: Tensor) -> Tensor:
    """In float32; finite, so that what is impossible to two models weighs nothing, and not NaN, in a divergence."""
    return logits.float().log_softmax(-1).clamp_(min=-1e30)


def main_of(supernet: Supernet) -> Reference:
    """The main placement of a supernet."""

    def main(tokens: Tensor, asked: Tensor) -> Tensor:
        supernet.activate(supernet.main)
        rack = supernet.rack
        return log_probabilities(rack.read_out(rack.run(rack.embed(tokens))[asked][None])[0])

    return main


def teacher_of(model: nn.Module) -> Reference:
    """Another model: tokens [batch, time] -> logits [batch, time, vocab_size]."""
    return lambda tokens, asked: log_probabilities(model(tokens)[asked])


class KeptPredictions:
    """What a reference says of the asked positions of some sequences; it does not run again. `n_bytes` are kept."""

    def __init__(self, kept: dict[bytes, Tensor]) -> None:
        self._kept = kept
        self.n_bytes = sum(each.nbytes for each in kept.values())

    @classmethod
    def of(cls, reference: Reference, batches: Iterable[Batch], max_bytes: int) -> Self | None:
        """Run the reference over batches; None, and nothing kept, if what it says takes more than `max_bytes`."""
        kept: dict[bytes, Tensor] = {}
        n_bytes = 0
        for tokens, targets in _together(batches):
            asked = targets != IGNORED
            found = reference(tokens, asked)
            n_bytes += found.nbytes
            if n_bytes > max_bytes:
                return None
            kept |= zip(_keys(tokens, asked), found.split(asked.sum(1).tolist()), strict=True)
        return cls(kept)

    def __call__(self, tokens: Tensor, asked: Tensor) -> Tensor:
        """Log probabilities at the asked positions of a batch, whose sequences must be among those that were given."""
        kept = [self._kept[key] for key in _keys(tokens, asked)]
        return kept[0] if len(kept) == 1 else torch.cat(kept)


def _together(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Small batches of one length that follow each other as one, of at most `TOGETHER` positions."""
    waiting: list[Batch] = []
    for batch in batches:
        n_positions = sum(tokens.numel() for tokens, _ in (*waiting, batch))
        if waiting and (n_positions > TOGETHER or batch[0].shape[1] != waiting[0][0].shape[1]):
            yield torch.cat([tokens for tokens, _ in waiting]), torch.cat([targets for _, targets in waiting])
            waiting = []
        waiting.append(batch)
    if waiting:
        yield torch.cat([tokens for tokens, _ in waiting]), torch.cat([targets for _, targets in waiting])


def _keys(tokens: Tensor, asked: Tensor) -> list[bytes]:
    """A row of a batch is known by its tokens and what is asked of it: the walk cuts batches wherever it must."""
    pairs = zip(tokens.cpu().numpy(), asked.cpu().numpy(), strict=True)
    return [row.tobytes() + positions.tobytes() for row, positions in pairs]
