"""Block, stack and rack: the model itself, without the specs it was built from."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.rack.choice import Choice
from models.rack.contracts import ChannelMixer, Head, Mixer
from models.rack.padding import TokensFirst, check_attention_mask
from models.rack.reports import collecting, is_collecting
from models.rack.time_embedding import TimeEmbedding

BlockState = tuple[Any, Any]
"""Of the mixer and of the channel mixer; None where nothing is kept."""
RackState = tuple[int, tuple[BlockState, ...]]
"""The number of positions so far, and the state of every block at each of its places."""


class Block(nn.Module):
    """`x + scale * mixer(norm(x))`, then the same with the channel mixer; either half may be absent.

    Post-norms, if given, act on what a half adds to the residual stream, before scale and dropout. The stream has the type that
    it comes in; where that is narrower than the weights', norms read it in theirs. `compute_dtype` is what products are computed
    in, by autocast; None: as around the block.
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
        self.compute_dtype: torch.dtype | None = None

    def sublayers(self) -> tuple[tuple[nn.Module | None, nn.Module | None, nn.Module | None], ...]:
        """Norm, part and post-norm of the mixer, then of the channel mixer."""
        return (self.mixer_norm, self.mixer, self.mixer_post_norm), (self.mlp_norm, self.mlp, self.mlp_post_norm)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[batch, time, d_model] -> [batch, time, d_model].

        `attention_mask` [batch, time] is false at pads: they have no effect, wherever they stand, and what comes out there is
        finite and has no other meaning.
        """
        if attention_mask is None:
            return self._through(x, None)
        order = TokensFirst(attention_mask)
        return order.put_back(self._through(order.put(x), order.attention_mask))

    def _through(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Both halves, of rows that end with their pads."""
        with self._autocast(x):
            for norm, part, post_norm in self.sublayers():
                if part is not None and (active := _active(part)) is not None:
                    seen = self._read(x, norm)
                    mixed = (
                        active(seen, attention_mask=attention_mask)
                        if attention_mask is not None and reads_attention_mask(active)
                        else part(seen)
                    )
                    x = x + self._finished(mixed, post_norm).to(x.dtype)
        return x

    @property
    def has_step(self) -> bool:
        """Whether the block can go on position by position: its mixer has to have a step form."""
        mixer = _active(self.mixer)
        return not isinstance(mixer, Mixer) or mixer.has_step

    def initial_state(self, batch_size: int) -> BlockState:
        """The state before the first position; of a choice, that of the active part."""
        mixer, mlp = (_active(part) for _, part, _ in self.sublayers())
        return _initial_state(mixer, batch_size), _initial_state(mlp, batch_size)

    def step(self, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """One position: ([batch, d_model], state) -> ([batch, d_model], next state)."""
        next_state = []
        with self._autocast(x):
            for (norm, part, post_norm), before in zip(self.sublayers(), state, strict=True):
                active, after = _active(part), None
                if active is not None:
                    change, after = _step(active, self._read(x, norm), before)
                    x = x + self._finished(change, post_norm).to(x.dtype)
                next_state.append(after)
        return x, (next_state[0], next_state[1])

    def _autocast(self, x: Tensor) -> AbstractContextManager[object]:
        """Products in the block's own precision; torch's meta device has no autocast."""
        if self.compute_dtype is None or x.is_meta:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self.compute_dtype)

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
    """Blocks in a row.

    `uid` stays the same wherever in a rack the stack comes to stand. `compute_dtype` is what its blocks compute products in
    (None: as around the stack); the residual stream keeps its type. With `checkpointing`, what a gradient goes through, be it
    trained or not, keeps the input of every block alone and computes the rest anew (Chen et al. 2016, arXiv 1604.06174).
    """

    def __init__(self, blocks: Iterable[nn.Module], *, uid: int = 0, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.uid = uid
        self.checkpointing = False
        self.compute_in(compute_dtype)

    def compute_in(self, dtype: torch.dtype | None) -> None:
        """Set what products are computed in; also in the blocks, since what steps or walks through a rack goes by them."""
        self.compute_dtype = dtype
        for block in self.blocks:
            block.compute_dtype = dtype  # type: ignore[assignment]

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[batch, time, d_model] -> [batch, time, d_model]; `attention_mask` [batch, time] is false at pads."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled() and _has_gradient(x, block):
                x = checkpoint(block, x, attention_mask, use_reentrant=False, context_fn=_reporting_once)
            else:
                x = block(x) if attention_mask is None else block(x, attention_mask)
        return x


class Rack(nn.Module):
    """The whole model: embedding, stacks, head.

    The embedding takes tokens and, after them, the position of the first one (0, if it is not told). The head's last linear is
    its `output`; with `tie_embeddings` it shares the embedding's weight. With a `time_embedding` the rack is also told how far
    each sample is noised.
    """

    time_embedding: TimeEmbedding | None

    def __init__(
        self,
        embedding: nn.Embedding,
        stacks: Iterable[Stack],
        head: Head,
        *,
        tie_embeddings: bool = False,
        time_embedding: TimeEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.register_module("time_embedding", time_embedding)  # also None: one that comes later stands at its place
        self.stacks = nn.ModuleList(stacks)
        self.head = head
        self.vocab_size = embedding.num_embeddings
        if tie_embeddings:
            self.head.output.weight = self.embedding.weight

    def blocks(self) -> list[Block]:
        """All blocks in the order of the data flow; a shared one appears at each of its places."""
        return [block for stack in self.stacks for block in stack.blocks]  # type: ignore[union-attr]

    def set_checkpointing(self, *, enabled: bool) -> None:
        """Whether gradients keep the input of every block alone, and compute the rest anew."""
        for stack in self.stacks:
            stack.checkpointing = enabled  # type: ignore[assignment]

    def forward(
        self,
        tokens: Tensor | None,
        *,
        t: Tensor | None = None,
        attention_mask: Tensor | None = None,
        hidden: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Tokens [batch, time] -> logits [batch, time, vocab_size].

        Args:
            tokens: not read where `hidden` is given.
            t: time steps [batch] int64 of a rack with a time embedding; they are part of `hidden` already.
            attention_mask: [batch, time] bool, false at pads, which may stand anywhere and have no effect.
            hidden: [batch, time, d_model], the input of `stacks[start]`.
            start: where to go on from.

        Raises:
            ValueError: for a start without `hidden`, or time steps missing or not known to the rack.
        """
        if hidden is None:
            if tokens is None or start:
                raise ValueError(f"start = {start}: a rack starts from tokens at its first stack, elsewhere from hidden states")
            hidden = self.embed(tokens, t, attention_mask)
        return self.read_out(self.run(hidden, start=start, attention_mask=attention_mask), attention_mask)

    def embed(self, tokens: Tensor, t: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """What the first stack gets: tokens [batch, time] and time steps [batch], if there are any -> [batch, time, d_model].

        Positions are counted without the pads.
        """
        if attention_mask is None:
            return self._timed(self.embedding(tokens), t)
        check_attention_mask(attention_mask, tokens)
        order = TokensFirst(attention_mask)
        return self._timed(order.put_back(self.embedding(order.put(tokens))), t)

    def run(self, x: Tensor, *, start: int = 0, stop: int | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """Through the stacks [start:stop]: [batch, time, d_model] -> same."""
        if attention_mask is not None:
            check_attention_mask(attention_mask, x)
        for stack in list(self.stacks)[start:stop]:
            x = stack(x) if attention_mask is None else stack(x, attention_mask)
        return x

    def read_out(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the head makes of the last stack's output: [batch, time, d_model] -> logits."""
        if attention_mask is not None and reads_attention_mask(self.head):
            return self.head(x, attention_mask=attention_mask)
        return self.head(x)

    def _timed(self, x: Tensor, t: Tensor | None) -> Tensor:
        if self.time_embedding is None:
            if t is not None:
                raise ValueError("t is given, but the rack has no time embedding")
            return x
        if t is None:
            raise ValueError("the rack has a time embedding: it needs t, the time step of each sample")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must be [batch] = {list(x.shape[:1])}, the time step of each sample; got {list(t.shape)}")
        return x + self.time_embedding(t).to(x.dtype)

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
        x, after = self._timed(self.embedding(tokens[:, None], position), None)[:, 0], []
        for block, block_state in zip(self.blocks(), before, strict=True):
            x, block_state_after = block.step(x, block_state)
            after.append(block_state_after)
        return self.head(x[:, None])[:, 0], (position + 1, tuple(after))


def _has_gradient(x: Tensor, block: nn.Module) -> bool:
    return x.requires_grad or any(parameter.requires_grad for parameter in block.parameters())


def _active(part: nn.Module | None) -> nn.Module | None:
    """The part itself, or of a choice the active part."""
    return part.part if isinstance(part, Choice) else part


def reads_attention_mask(part: nn.Module) -> bool:
    """Whether pads behind all tokens count for a part. They do not for causal mixers, which run faster without a mask."""
    return getattr(part, "takes_attention_mask", False) and not getattr(part, "causal", False)


def _reporting_once() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Contexts of a checkpointed part: what it reports as it runs counts; computed anew it must do the same, unheard."""
    return nullcontext(), collecting() if is_collecting() else nullcontext()


def _keeps_state(part: nn.Module | None) -> TypeGuard[Mixer | ChannelMixer]:
    """Mixers do; a channel mixer may (it looks at the position before), and says so."""
    return isinstance(part, Mixer) or (isinstance(part, ChannelMixer) and part.has_step)


def _step(part: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return part.step(x, state) if _keeps_state(part) else (part(x), None)


def _initial_state(part: nn.Module | None, batch_size: int) -> Any:
    return part.initial_state(batch_size) if _keeps_state(part) else None
