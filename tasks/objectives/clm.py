"""The objective `clm`, causal language modelling: predict the next token."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tasks.objectives.shared.objective import Draw, Objective, ObjectiveTargets, Sequences
from tasks.task import IGNORED


@dataclass(frozen=True, kw_only=True)
class Clm(Objective):
    """At each position of a sequence but the last, the token after it; neither at a pad nor before one.

    The last position has no next token: nothing is asked there, not even its own token.
    """

    on_bidirectional_stacks: ClassVar[Literal["fits", "refused"]] = "refused"

    def apply(self, batch: Sequences, draw: Draw, time: float | np.ndarray = 0.0) -> ObjectiveTargets:
        """As the contract says: tokens as they are."""
        del draw, time
        tokens, kept = batch.tokens.astype(np.int64), batch.kept
        is_followed = np.arange(tokens.shape[1]) < tokens.shape[1] - 1
        supervised = kept & np.roll(kept, -1, axis=1) & is_followed
        return ObjectiveTargets(
            inputs=tokens,
            targets=np.where(supervised, np.roll(tokens, -1, axis=1), IGNORED),
            loss_mask=supervised,
            clm_mask=is_followed,
            mask_ratio=np.zeros(len(tokens)),
            loss_weights=np.ones(len(tokens)),
        )
