"""LocalLossSpec: which exit each unit learns from, and in which order units train."""

from typing import Literal, Self

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from configs.errors import Problems
from configs.spec import Spec

NO_CHECKPOINTED_TAIL = "a tail that stands still cannot be computed again: leave true, or set gradient_checkpointing: false"
"""Torch computes it again in the backward pass, when it does not stand still any more, and finds other tensors to keep."""


class LocalLossSpec(Spec):
    """The losses of units, which are a rack's blocks or stacks: cross entropies of exits, one behind every unit.

    `head` is how an exit reads a unit's output: by the rack's norm and unembedding (`shared_unembed`), before which all exits but
    the last, the rack's own, may have more:

    - `tuned`: an affine map of rank `rank`, the identity at the start (Belrose et al. 2023, arXiv 2303.08112);
    - `aux_block`: a block that starts as a copy of the unit's last one (Belilovsky et al. 2020, arXiv 1901.08164);
    - `tail`: what of the rack's last stack comes after the unit; with `tail_learns` that learns from it too.

    `schedule` is what a step trains: every unit, each with the output of the one before as a constant (`simultaneous`); the same,
    but losses reach back over two units (`overlap`; Xiong et al. 2020, arXiv 2008.01342); one unit alone, while those before it
    stand still, the first unit in the first part of the steps, and so on (`sequential`).

    The embedding learns what the first unit does. `head_learns_from` says whose losses the rack's head learns from. From `all`,
    every exit is read as well as it can be. From the `last`, the units before are held to a read-out that is made for another;
    one after another, to one that has not learnt anything yet (4 stacks for 300 steps on text of programs: 2.09 nats a byte
    from all, 2.21 from the last; at once 1.866 and 1.869; a `tail` that learns 1.832, that does not 1.851; end to end 1.817).

    `transport` weighs the squared length of what a unit adds to each position, |f(x) - x|^2, which keeps early units from using
    up what later ones need (Karkar et al. 2023, arXiv 2309.17357).
    """

    head: Literal["shared_unembed", "tuned", "aux_block", "tail"] = "shared_unembed"
    schedule: Literal["simultaneous", "sequential", "overlap"] = "simultaneous"
    head_learns_from: Literal["all", "last"] = "all"
    rank: PositiveInt = 16
    tail_learns: bool = True
    transport: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems()
        for name, head in (("rank", "tuned"), ("tail_learns", "tail")):
            if getattr(self, name) != type(self).model_fields[name].default and self.head != head:
                problems.add((name,), f"is of the head {head}, not of {self.head}")
        problems.raise_if_any(type(self).__name__)
        return self
