"""The selective scan of state-space models: a diagonal recurrence whose states are never held for all positions at once."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.precision import in_float32
from models.ops.transforms import refuse_second_derivatives

CACHED = 2**18
"""States of one position of all chunks that a CPU computes at once: what it reads again is then still in its caches."""


@in_float32
def selective_scan(steps: Tensor, x: Tensor, write: Tensor, read: Tensor, speed: Tensor) -> Tensor:
    """y_t = read_t h_t with h_t = exp(steps_t speed) h_{t-1} + write_t (steps_t x_t)^T.

    Shapes: steps >= 0 and x [batch, time, channels], write and read [batch, time, states], speed [states, channels], negative
    -> [batch, time, channels].

    Two passes over about sqrt(time) chunks side by side: what each adds by its end, then its states, from what came before
    it. Decays are only ever multiplied, never divided by: nothing overflows. States come before channels in every shape, so
    that the long axis is the contiguous one. On a CPU a few sequences at a time, by CACHED.
    """
    size = speed.numel() * -(-steps.shape[-2] // _chunk(steps.shape[-2]))
    at_once = max(1, CACHED // size) if steps.device.type == "cpu" else len(steps)
    pieces = zip(*(part.split(at_once) for part in (steps, steps * x, write, read)), strict=True)
    return torch.cat([_SelectiveScan.apply(*piece, speed)[0] for piece in pieces])


def selective_scan_flops(time: int, channels: int, states: int) -> int:
    """Forward operations, padding included: at each position two steps, of a product and a multiply-add, and the read-out."""
    n_chunks = -(-time // _chunk(time))
    return (8 * n_chunks * _chunk(time) + 2 * (n_chunks - 1)) * channels * states


class _SelectiveScan(torch.autograd.Function):
    """Keeps the state before each chunk alone; the backward pass computes the others again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(steps: Tensor, x: Tensor, write: Tensor, read: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        """The output [batch, time, channels] and the state before each chunk [batch, chunks, states, channels]."""
        rows = _rows(steps, x, write, read)
        decays = [(step * speed).exp() for step in rows[0]]
        end = torch.zeros_like(decays[0])
        for state in _run(end, decays, rows):
            end = state
        before = _carry(end, _reach(rows[0], speed), order=1)
        states = _run(before, decays, rows)
        return _join([reading @ state for reading, state in zip(rows[3], states, strict=True)], like=x), before

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what the backward pass starts from."""
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """The recurrence backwards in time, with the same two passes; `back` is the gradient by the state one position before."""
        refuse_second_derivatives()
        steps, x, write, read, speed, before = ctx.saved_tensors
        rows = _rows(steps, x, write, read)
        incoming = _rows(gradients[0])[0]
        decays = [(step * speed).exp() for step in rows[0]]
        states = [before, *_run(before, decays, rows)]
        back = torch.zeros_like(before)
        for decay, reading, mixed in zip(decays[::-1], rows[3][::-1], incoming[::-1], strict=True):
            back = decay * torch.addcmul(back, reading.mT, mixed)
        back = _carry(back, _reach(rows[0], speed), order=-1)
        by_speed = torch.zeros_like(before)
        found: list[tuple[Tensor, ...]] = []
        for place in range(len(decays) - 1, -1, -1):
            step, value, writing, reading = (row[place] for row in rows)
            by_state = torch.addcmul(back, reading.mT, incoming[place])
            back = decays[place] * by_state
            by_exponent = back * states[place]
            by_speed = torch.addcmul(by_speed, by_exponent, step)
            by_step = (by_exponent * speed).sum(-2, keepdim=True)
            found.append((by_step, writing @ by_state, value @ by_state.mT, incoming[place] @ states[place + 1].mT))
        by_inputs = (_join(list(parts), like=x) for parts in zip(*found[::-1], strict=True))
        return *by_inputs, by_speed.flatten(0, -3).sum(0)


def _rows(*sequences: Tensor) -> list[tuple[Tensor, ...]]:
    """Of each [batch, time, size]: the first position of all chunks, the second, ..., each [batch, chunks, 1, size]."""
    time = sequences[0].shape[-2]
    chunk = _chunk(time)
    padded = (F.pad(part, (0, 0, 0, -time % chunk)) for part in sequences)
    return [part.unflatten(-2, (-1, chunk, 1)).unbind(-3) for part in padded]


def _chunk(time: int) -> int:
    """The positions of a chunk: the square root of all, rounded up."""
    return math.isqrt(time - 1) + 1


def _join(rows: list[Tensor], *, like: Tensor) -> Tensor:
    """The inverse of `_rows`: [batch, time, size] of the time of `like`."""
    return torch.stack(rows, dim=-3).flatten(-4, -2)[..., : like.shape[-2], :]


def _run(state: Tensor, decays: list[Tensor], rows: list[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """The states of all chunks at their first position, their second, ..."""
    for decay, value, writing in zip(decays, rows[1], rows[2], strict=True):
        state = torch.addcmul(decay * state, writing.mT, value)
        yield state


def _reach(steps: tuple[Tensor, ...], speed: Tensor) -> Tensor:
    """How much of the state before each chunk is left at its end."""
    return (torch.stack(steps).sum(0) * speed).exp()


def _carry(added: Tensor, reach: Tensor, *, order: int) -> Tensor:
    """What reaches each chunk from all before it (`order` 1) or after it (-1), given what each adds for the next."""
    states = [torch.zeros_like(added[..., 0, :, :])]
    for more, fade in zip(added.unbind(-3)[::order][:-1], reach.unbind(-3)[::order][:-1], strict=True):
        states.append(torch.addcmul(more, fade, states[-1]))
    return torch.stack(states[::order], dim=-3)
