"""The objective `custom`: targets that come with the data."""

from dataclasses import dataclass

import numpy as np

from tasks.objectives.shared.objective import Draw, Objective, ObjectiveTargets, Sequences
from tasks.task import IGNORED


@dataclass(frozen=True, kw_only=True)
class Custom(Objective):
    """The batch's own targets, asked where they are not `IGNORED` and no pad is."""

    def apply(self, batch: Sequences, draw: Draw, time: float | np.ndarray = 0.0) -> ObjectiveTargets:
        """As the contract says: tokens as they are; a ValueError where the batch has no targets."""
        del draw, time
        if batch.targets is None:
            raise ValueError("objective custom needs a batch with targets, and this one has none; mlm and clm make their own")
        targets = np.where(batch.kept, batch.targets.astype(np.int64), IGNORED)
        return ObjectiveTargets(
            inputs=batch.tokens.astype(np.int64),
            targets=targets,
            loss_mask=targets != IGNORED,
            clm_mask=np.ones(targets.shape[1], dtype=bool),
            mask_ratio=np.zeros(len(targets)),
            loss_weights=np.ones(len(targets)),
        )
