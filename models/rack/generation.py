"""Generation: tokens that go on from a prompt, one position at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from models.ops.checks import at_least
from models.rack.modules import Rack, RackState
from models.rack.padding import TokensFirst, check_attention_mask


@torch.no_grad()
def generate(
    rack: Rack,
    tokens: Tensor,
    *,
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Go on from a prompt: tokens [batch, time] -> [batch, time + n_tokens].

    Every position is computed once, from the states that the mixers keep: the prompt's too, one after the other. Where a mixer
    has no step form (hyena, attention that is not causal) the whole sequence so far is computed anew for every token: the same
    result at a cost that grows with the square of its length. The rack runs in evaluation mode, and keeps its own.

    Prompts of unlike lengths have pads, which no state ever gets: a row that is at the end of its prompt goes on while longer
    ones are still read. Each row is continued as it would be alone.

    Args:
        rack: with a head that reads out every position; of a space, the active placement goes on.
        tokens: at least one a row, on the rack's device.
        n_tokens: how many to add to each row; they stand behind all of it, pads included.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        top_k: draw from as many of the likeliest tokens; None: from all.
        generator: of the draws; None is a new one of seed 0.
        attention_mask: [batch, time] bool, false at pads, which may stand anywhere; None: there are none.

    Raises:
        ValueError: for numbers that cannot be, rows without a token, a head that reads out something else, or more positions
            than the rack has.
    """
    kept = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
    _check_numbers(n_tokens, temperature, top_k)
    _check_prompts(rack, tokens, kept)
    generator = generator or torch.Generator(tokens.device).manual_seed(0)
    lengths = kept.sum(1)
    shortest, longest = int(lengths.min()), int(lengths.max())
    rows = torch.cat((TokensFirst(kept).put(tokens)[:, :longest], tokens.new_zeros(len(tokens), n_tokens)), dim=1)
    with _evaluating(rack):
        state, n_read = rack.initial_state(len(tokens)) if rack.has_step else None, 0
        for end in range(shortest, longest + n_tokens):
            if state is None:
                logits = rack(rows[:, :end])[:, -1]
            else:
                logits, state = _read(rack, rows[:, n_read:end], state)
            n_read = end
            new = drawn(logits, temperature=temperature, top_k=top_k, generator=generator)
            rows[:, end] = torch.where(lengths <= end, new, rows[:, end])
    added = lengths[:, None] + torch.arange(n_tokens, device=tokens.device)
    return torch.cat((tokens, rows.gather(1, added)), dim=1)


def drawn(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One token of each row of logits [batch, vocab_size]: [batch]."""
    if temperature == 0:
        return logits.max(-1).indices  # of bfloat16, argmax takes two to four times as long on a CPU
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


def _check_numbers(n_tokens: int, temperature: float, top_k: int | None) -> None:
    at_least(1, n_tokens=n_tokens)
    if temperature < 0:
        raise ValueError(f"temperature = {temperature} must be at least 0")
    if top_k is not None:
        at_least(1, top_k=top_k)


def _check_prompts(rack: Rack, tokens: Tensor, kept: Tensor) -> None:
    if tokens.dim() != 2 or not tokens.numel():
        raise ValueError(f"tokens must be [batch, time] with at least one position, not of shape {list(tokens.shape)}")
    check_attention_mask(kept, tokens)
    if empty := (~kept.any(1)).nonzero().flatten().tolist():
        raise ValueError(f"attention_mask keeps no token of row {empty[0]}: there is nothing to go on from")
    if not rack.head.has_step:
        raise ValueError(f"a rack with the head {type(rack.head).__name__} does not say what comes next")
