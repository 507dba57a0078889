"""Generation: tokens that go on from a prompt, one position at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from models.ops.checks import at_least
from models.rack.modules import Rack, RackState


@torch.no_grad()
def generate(
    rack: Rack,
    tokens: Tensor,
    *,
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Go on from a prompt: tokens [batch, time] -> [batch, time + n_tokens].

    Every position is computed once, from the states that the mixers keep: the prompt's too, one after the other. Where a mixer
    has no step form (hyena, attention that is not causal) the whole sequence so far is computed anew for every token: the same
    result at a cost that grows with the square of its length. The rack runs in evaluation mode, and keeps its own.

    Args:
        rack: with a head that reads out every position; of a space, the active placement goes on.
        tokens: at least one, on the rack's device.
        n_tokens: how many to add.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        top_k: draw from as many of the likeliest tokens; None: from all.
        generator: of the draws; None is a new one of seed 0.

    Raises:
        ValueError: for numbers that cannot be, a head that reads out something else, or more positions than the rack has.
    """
    _check(rack, tokens, n_tokens, temperature, top_k)
    generator = generator or torch.Generator(tokens.device).manual_seed(0)
    with _evaluating(rack):
        state = rack.initial_state(len(tokens)) if rack.has_step else None
        unread = tokens
        for _ in range(n_tokens):
            if state is None:
                logits = rack(tokens)[:, -1]
            else:
                logits, state = _read(rack, unread, state)
            unread = drawn(logits, temperature=temperature, top_k=top_k, generator=generator)[:, None]
            tokens = torch.cat((tokens, unread), dim=1)
    return tokens


def drawn(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One token of each row of logits [batch, vocab_size]: [batch]."""
    if temperature == 0:
        return logits.argmax(-1)
    candidates = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, candidates = logits.topk(top_k, dim=-1)
    chances = (logits.float() / temperature).softmax(-1)
    choice = torch.multinomial(chances, 1, generator=generator)
    return (choice if candidates is None else candidates.gather(-1, choice))[:, 0]


def _read(rack: Rack, tokens: Tensor, state: RackState) -> tuple[Tensor, RackState]:
    """Step through tokens [batch, time]: the logits after the last one, and the state."""
    *earlier, last = tokens.unbind(1)
    for position in earlier:
        _, state = rack.step(position, state)
    return rack.step(last, state)


@contextmanager
def _evaluating(rack: Rack) -> Iterator[None]:
    """Evaluation mode for a while, then every part's own."""
    modes = [(module, module.training) for module in rack.modules()]
    rack.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check(rack: Rack, tokens: Tensor, n_tokens: int, temperature: float, top_k: int | None) -> None:
    at_least(1, n_tokens=n_tokens)
    if temperature < 0:
        raise ValueError(f"temperature = {temperature} must be at least 0")
    if top_k is not None:
        at_least(1, top_k=top_k)
    if tokens.dim() != 2 or not tokens.shape[1]:
        raise ValueError(f"tokens must be [batch, time] with at least one position, not of shape {list(tokens.shape)}")
    if not rack.head.has_step:
        raise ValueError(f"a rack with the head {type(rack.head).__name__} does not say what comes next")
