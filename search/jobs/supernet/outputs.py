"""What a model gives for a batch, read out some positions at a time: with a large vocabulary logits are larger than all else."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import Rack, Supernet

LOGIT_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Of float32 logits, by kind of device, that a loss holds at once; what they are made into is a few times that."""


@dataclass
class Outputs:
    """Logits [rows, time, vocab_size] or, with the `head` that they come from, what it reads [rows, time, d_model].

    `hidden` is what each layer gives [rows, time, d_model], where that is wanted.
    """

    states: Tensor
    head: nn.Module | None = None
    hidden: list[Tensor] = field(default_factory=list)

    def logits(self, positions: slice) -> Tensor:
        """Of some positions, counted row after row: [positions, vocab_size]."""
        chosen = self.states.flatten(0, 1)[positions]
        if self.head is None:
            return chosen
        logits: Tensor = self.head(chosen[None])[0]
        return logits


def outputs_of(model: nn.Module, inputs: Tensor, *, is_read_out: bool, with_hidden: bool = False) -> Outputs:
    """A model's outputs for tokens [rows, time]: the logits, or what the head would make them of."""
    rack = rack_of(model)
    watching: AbstractContextManager[list[Tensor]] = _hidden_states(rack) if with_hidden else nullcontext([])
    with watching as hidden:
        if is_read_out:
            return Outputs(model(inputs), hidden=hidden)
        return Outputs(rack.run(rack.embed(inputs)), rack.head, hidden)


def pieces(model: nn.Module, n_positions: int, device: torch.device) -> list[slice]:
    """The positions of a batch, as many together as a loss may hold logits of; all, if the model's head needs them together."""
    head, vocab_size = rack_of(model).head, rack_of(model).embedding.num_embeddings
    n_at_once = max(1, LOGIT_BYTES[device.type] // (4 * vocab_size))
    if n_at_once >= n_positions or not head.has_step or getattr(head, "takes_attention_mask", False):
        return [slice(0, n_positions)]
    return [slice(first, min(first + n_at_once, n_positions)) for first in range(0, n_positions, n_at_once)]


def total(loss_of: Callable[[slice], Tensor], positions: list[slice]) -> Tensor:
    """The sum of a loss over pieces; where there are several, each is computed anew in the backward pass."""
    if len(positions) == 1:
        return loss_of(positions[0])
    losses: list[Tensor] = [checkpoint(loss_of, piece, use_reentrant=False) for piece in positions]
    return torch.stack(losses).sum()


def rack_of(model: nn.Module) -> Rack:
    """That of a supernet, or the model itself."""
    rack = model.rack if isinstance(model, Supernet) else model
    assert isinstance(rack, Rack)  # whoever is taught or teaches is one of the two
    return rack


@contextmanager
def _hidden_states(rack: Rack) -> Iterator[list[Tensor]]:
    """Collects what the blocks give, in the order of the data flow, while the context is open."""
    states: list[Tensor] = []
    blocks = dict.fromkeys(rack.blocks())  # a shared block has one hook, which fires at each of its places
    hooks = [block.register_forward_hook(lambda _module, _inputs, output: states.append(output)) for block in blocks]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
