"""Block, stack and rack: the model itself, without the specs it was built from."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from models.mixer import Head
from models.stochastic import Choice


class Block(nn.Module):
    """`x + scale * mixer(norm(x))`, then the same with the channel mixer; either half may be absent.

    Post-norms, if given, act on what a half adds to the residual stream, before scale and dropout.
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
            if part is None or (isinstance(part, Choice) and part.part is None):
                continue
            change = part(x if norm is None else norm(x))
            if post_norm is not None:
                change = post_norm(change)
            if self.output_scale != 1.0:
                change = change * self.output_scale
            if self.dropout is not None:
                change = self.dropout(change)
            x = x + change
        return x


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

    The head's last linear is its `output`; with `tie_embeddings` it shares the embedding's weight.
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
