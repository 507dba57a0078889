"""The score log: what has been measured is not measured again, by another strategy, under another budget, or after a kill."""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import nn

from configs.records import Row
from models import Placement, Supernet, placement_text
from search.runs.run_folder import TrialLog
from search.training.checkpoint import weights

MeasuredScores = dict[str, list[float]]
"""By task, a number for each batch so far."""


class ScoreLog(TrialLog):
    """Measurements by key, in a file of JSON lines that is only added to; one file may serve many supernets and data sets.

    A row holds all batches of a placement so far, and the last row of a key counts: one that a race left early is continued, not
    repeated.
    """

    def is_whole(self, row: Row) -> bool:
        """Whether each task has as many numbers as there are batches."""
        batches = row.get("batches")
        if not super().is_whole(row) or not isinstance(batches, dict):
            return False
        lengths = {len(values) if isinstance(values, list) else None for values in batches.values()}
        return lengths == {row.get("n_batches")}

    def measured(self, key: str) -> MeasuredScores:
        """What is known, perhaps nothing. Numbers that JSON has no word for were not finite, and are minus infinity again."""
        batches = self.rows.get(key, {"batches": {}})["batches"]
        return {task: [-math.inf if value is None else value for value in values] for task, values in batches.items()}

    def add_round(self, measured: Mapping[str, tuple[Placement, MeasuredScores]]) -> None:
        """Append a row a key; they are on the disk when this returns."""
        rows: list[Row] = [
            {
                "key": key,
                "placement": placement_text(placement),
                "n_batches": len(next(iter(batches.values()))),
                "batches": batches,
            }
            for key, (placement, batches) in measured.items()
        ]
        self.add_all(rows)


def weights_fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits of every tensor of a model, to the bit; of a supernet, of its space too."""
    digest = hashlib.sha256()
    if isinstance(model, Supernet):  # a window, for one, changes the scores and has no weights
        digest.update(model.space.fingerprint().encode())
    for name, tensor in weights(model).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes: NumPy has no bfloat16. A scalar has no last dimension to view, so all are flat.
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
