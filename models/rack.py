"""Block, stack and rack: the model itself, without the specs it was built from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from models.mixer import ChannelMixer, Head, Mixer
from models.stochastic import Choice

BlockState = tuple[Any, Any]
"""Of the mixer and of the channel mixer; None where nothing is kept."""
RackState = tuple[int, tuple[BlockState, ...]]
"""The number of positions so far, and the state of every block at each of its places."""


class Block(nn.Module):
    """`x + scale * mixer(norm(x))`, then the same with the channel mixer; either half may be absent.

    Post-norms, if given, act on what a half adds to the residual stream, before scale and dropout. The stream has the type that
    it comes in; where that is narrower than the weights', norms read it in theirs.
    """

    def __init__(
        self,
        mixer: nn.Module | None = None,
        mlp: nn.Module | None = None,
        *,
        mixer_norm: nn.Module | None = None,
        mlp_norm: nn.Module | None = None,
        mixer_post_norm: nn.Module | None = None,
        mlp_post_norm: nn.Module | None = None,
        output_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer_norm, self.mixer, self.mixer_post_norm = mixer_norm, mixer, mixer_post_norm
        self.mlp_norm, self.mlp, self.mlp_post_norm = mlp_norm, mlp, mlp_post_norm
        self.output_scale = output_scale
        self.dropout = nn.Dropout(dropout) if dropout else None

    def halves(self) -> tuple[tuple[nn.Module | None, nn.Module | None, nn.Module | None], ...]:
        """Norm, part and post-norm of the mixer, then of the channel mixer."""
        return (self.mixer_norm, self.mixer, self.mixer_post_norm), (self.mlp_norm, self.mlp, self.mlp_post_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d_model] -> [batch, time, d_model]."""
        for norm, part, post_norm in self.halves():
            if part is not None and _active(part) is not None:
                x = x + self._finished(part(self._read(x, norm)), post_norm).to(x.dtype)
        return x

    @property
    def has_step(self) -> bool:
        """Whether the block can go on position by position: its mixer has to have a step form."""
        mixer = _active(self.mixer)
        return not isinstance(mixer, Mixer) or mixer.has_step

    def initial_state(self, batch_size: int) -> BlockState:
        """The state before the first position; of a choice, that of the active part."""
        mixer, mlp = (_active(part) for _, part, _ in self.halves())
        return _initial_state(mixer, batch_size), _initial_state(mlp, batch_size)

    def step(self, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """One position: ([batch, d_model], state) -> ([batch, d_model], next state)."""
        next_state = []
        for (norm, part, post_norm), before in zip(self.halves(), state, strict=True):
            active, after = _active(part), None
            if active is not None:
                change, after = _step(active, self._read(x, norm), before)
                x = x + self._finished(change, post_norm).to(x.dtype)
            next_state.append(after)
        return x, (next_state[0], next_state[1])

    def _read(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """What a half sees of the residual stream."""
        if x.dtype == torch.bfloat16:
            x = x.to(next(self.parameters(), x).dtype)
        return x if norm is None else norm(x)

    def _finished(self, change: Tensor, post_norm: nn.Module | None) -> Tensor:
        """What a half adds to the residual stream."""
        if post_norm is not None:
            change = post_norm(change)
        if self.output_scale != 1.0:
            change = change * self.output_scale
        return change if self.dropout is None else self.dropout(change)


class Stack(nn.Module):
    """Blocks in a row."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d_model] -> [batch, time, d_model]."""
        for block in self.blocks:
            x = block(x)
        return x


class Rack(nn.Module):
    """The whole model: embedding, stacks, head.

    The embedding takes tokens and, after them, the position of the first one (0, if it is not told). The head's last linear is
    its `output`; with `tie_embeddings` it shares the embedding's weight.
    """

    def __init__(self, embedding: nn.Embedding, stacks: Iterable[Stack], head: Head, *, tie_embeddings: bool = False) -> None:
        super().__init__()
        self.embedding = embedding
        self.stacks = nn.ModuleList(stacks)
        self.head = head
        self.vocab_size = embedding.num_embeddings
        if tie_embeddings:
            self.head.output.weight = self.embedding.weight

    def blocks(self) -> list[Block]:
        """All blocks in the order of the data flow; a shared one appears at each of its places."""
        return [block for stack in self.stacks for block in stack.blocks]  # type: ignore[union-attr]

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, time] -> logits [batch, time, vocab_size]."""
        x = self.embedding(tokens)
        for stack in self.stacks:
            x = stack(x)
        return self.head(x)

    @property
    def has_step(self) -> bool:
        """Whether every mixer has a step form and the head reads every position by itself; of a space, what is active."""
        return self.head.has_step and all(block.has_step for block in self.blocks())

    def initial_state(self, batch_size: int) -> RackState:
        """The state before the first position; NotImplementedError from the mixer that has no step form."""
        return 0, tuple(block.initial_state(batch_size) for block in self.blocks())

    def step(self, tokens: Tensor, state: RackState) -> tuple[Tensor, RackState]:
        """One position: (tokens [batch], state) -> (logits [batch, vocab_size], next state), as `forward` gives them."""
        position, before = state
        x, after = self.embedding(tokens[:, None], position)[:, 0], []
        for block, block_state in zip(self.blocks(), before, strict=True):
            x, block_state_after = block.step(x, block_state)
            after.append(block_state_after)
        return self.head(x[:, None])[:, 0], (position + 1, tuple(after))


def _active(part: nn.Module | None) -> nn.Module | None:
    """The part itself, or of a choice the active part."""
    return part.part if isinstance(part, Choice) else part


def _keeps_state(part: nn.Module | None) -> TypeGuard[Mixer | ChannelMixer]:
    """Mixers do; a channel mixer may (it looks at the position before), and says so."""
    return isinstance(part, Mixer) or (isinstance(part, ChannelMixer) and part.has_step)


def _step(part: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return part.step(x, state) if _keeps_state(part) else (part(x), None)


def _initial_state(part: nn.Module | None, batch_size: int) -> Any:
    return part.initial_state(batch_size) if _keeps_state(part) else None
