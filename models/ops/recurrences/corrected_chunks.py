"""The chunks of delta rules: what each writes is corrected by the memory before it. A loop over chunks, and one back."""

from typing import Any

import torch
from torch import Tensor

from models.ops.transforms import refuse_second_derivatives


def corrected_chunks(scores: Tensor, reading: Tensor, writing: Tensor, value: Tensor, decay: Tensor) -> Tensor:
    """What chunks read of a memory, Y = P W + Q S; after a chunk that starts at S it is decay S + writing^T W.

    `scores` has the rows of A and then those of P, `reading` those of E and then those of Q. What is written, W, is the update U
    where (I - A) U = value + E S. Where `scores` has twice as many columns, those of A and then those of B, W is U and then the
    values, and (I - A) U = B value + E S. A and B are zero on their diagonals and above.

    Shapes: scores [..., n_chunks, 2 chunk, columns], columns chunk or 2 chunk, reading [..., n_chunks, 2 chunk, d_key], writing
    [..., n_chunks, columns, d_key], value [..., n_chunks, chunk, d_value], decay over a chunk [..., n_chunks, d_key or 1, 1] ->
    the shape of `value`.
    """
    if value.shape[-3] == 1:  # no memory before the only chunk, and none after it: products over no channels
        reading, writing = reading[..., :0], writing[..., :0]
        decay = decay[..., :1, :]
    n_heads = value.shape[:-3].numel()
    parts = (part.reshape(n_heads, *part.shape[-3:]) for part in (scores, reading, writing, value, decay))
    mixed, *_ = _CorrectedChunks.apply(*parts)
    return mixed.reshape(value.shape)


def decayed_by_channel(rows: Tensor, columns: Tensor, value: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """The same where channels decay by themselves: `rows` after the middle of the chunk, `columns` back to it.

    Shapes: rows [..., n_chunks, 2 chunk, d_key], columns [..., n_chunks, columns, d_key], value as above; `middle` and `end` are
    the cumulative log decays there, [..., n_chunks, 1, d_key].
    """
    # Above their diagonals the products hold what would be needed to run backwards, however large.
    scores = below_diagonals(rows @ columns.mT)
    return corrected_chunks(scores, rows * middle.exp(), columns * (end - middle).exp(), value, end.mT.exp())


def below_diagonals(scores: Tensor) -> Tensor:
    """With zeros above the diagonals of all squares of [..., 2 chunk, columns], and on those of the upper ones."""
    chunk = scores.shape[-2] // 2
    square = torch.ones(chunk, chunk, dtype=torch.bool, device=scores.device)
    above = torch.cat((square.triu(), square.triu(1))).repeat(1, scores.shape[-1] // chunk)
    return scores.masked_fill(above, 0)


def corrected_chunks_flops(n_chunks: int, chunk: int, d_key: int, d_value: int, *, columns: int) -> int:
    """Forward operations for one head; the inverse is a solve, and that is one product with a triangle."""
    within = chunk**3 + 2 * chunk * d_value * (chunk + columns + (columns - chunk))
    states = (4 * chunk + 2 * columns + 2) * d_key * d_value if n_chunks > 1 else 0
    return n_chunks * (within + states)


class _CorrectedChunks(torch.autograd.Function):
    """Keeps the memory before each chunk and what each writes; every gradient is a product with one of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, reading: Tensor, writing: Tensor, value: Tensor, decay: Tensor) -> tuple[Tensor, ...]:
        """The output, (I - A)^-1, then the memory before each chunk, then what each writes."""
        chunk = value.shape[-2]
        coupling, bringing = scores[..., :chunk, :chunk], scores[..., :chunk, chunk:]
        identity = torch.eye(chunk, dtype=scores.dtype, device=scores.device).expand_as(coupling)
        inverse = torch.linalg.solve_triangular(-coupling, identity, upper=False, unitriangular=True)
        memory = torch.zeros_like(writing[:, 0, :1].mT * value[:, 0, :1])
        memories, written, mixed = [], [], []
        parts = (scores[..., chunk:, :], bringing, inverse, reading, writing, value, decay)
        for mixes, brings, solves, reads, writes, values, fade in zip(*(part.unbind(1) for part in parts), strict=True):
            missing, held = torch.bmm(reads, memory).split(chunk, dim=1)
            if brings.shape[-1]:
                update = torch.bmm(solves, torch.baddbmm(missing, brings, values))
                update = torch.cat((update, values), dim=1)
            else:
                update = torch.bmm(solves, values + missing)
            memories.append(memory)
            written.append(update)
            mixed.append(torch.baddbmm(held, mixes, update))
            memory = torch.addcmul(torch.bmm(writes.mT, update), fade, memory)
        return torch.stack(mixed, dim=1), inverse, *memories, *written

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass starts from."""
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """The chunks backwards; `back` is the gradient by the memory after a chunk, `by_rows` that by what its rows give."""
        refuse_second_derivatives()
        scores, reading, writing, value, decay, inverse, *kept = ctx.saved_tensors
        n_chunks, chunk = value.shape[1:3]
        memories, written = kept[:n_chunks], kept[n_chunks:]
        parts = [part.unbind(1) for part in (gradients[0], scores, inverse, reading, writing, decay)]
        back = torch.zeros_like(memories[0])
        found: list[tuple[Tensor, ...]] = []
        for place in range(n_chunks - 1, -1, -1):
            incoming, mixes, solves, reads, writes, fade = (part[place] for part in parts)
            by_written = torch.baddbmm(torch.bmm(mixes[:, chunk:].mT, incoming), writes, back)
            by_source = torch.bmm(solves.mT, by_written[:, :chunk])
            by_rows = torch.cat((by_source, incoming), dim=1)
            brings = mixes[:, :chunk, chunk:]
            by_value = torch.baddbmm(by_written[:, chunk:], brings.mT, by_source) if brings.shape[-1] else by_source
            by_fade = (back * memories[place]).sum(-1, keepdim=True)
            found.append(
                (
                    torch.bmm(by_rows, written[place].mT),
                    torch.bmm(by_rows, memories[place].mT),
                    torch.bmm(written[place], back.mT),
                    by_value,
                    by_fade if fade.shape[1] > 1 else by_fade.sum(1, keepdim=True),
                )
            )
            back = torch.addcmul(torch.bmm(reads.mT, by_rows), fade, back)
        return tuple(torch.stack(by_input, dim=1) for by_input in zip(*found[::-1], strict=True))
