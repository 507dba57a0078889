"""HeadScorer: the head's loss, accuracy or KL for each row of a batch, from the last hidden state."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from search.evaluation.reference import Reference
from tasks import IGNORED

Metric = Literal["loss", "accuracy", "kl"]


class HeadScorer:
    """Scores hidden states: sums over the asked positions of each row, higher is better.

    `loss` sums log probabilities of the targets, `accuracy` right answers, `kl` negative KL divergences from the reference's
    prediction. Logits are the largest thing of all, so no more than `rows_at_once` rows of them are made together.
    """

    def __init__(self, head: nn.Module, metric: Metric, reference: Reference) -> None:
        self._head, self._metric, self._reference = head, metric, reference

    def score(self, states: Sequence[Tensor], inputs: Tensor, targets: Tensor, rows_at_once: int) -> Tensor:
        """States of some leaves, each [rows, time, d_model] -> [leaves, rows] float64."""
        n_leaves = max(1, rows_at_once // len(inputs))
        columns = []
        for first in range(0, len(inputs), rows_at_once):
            rows = slice(first, first + rows_at_once)
            expected = self._log_probabilities(self._reference(inputs[rows])) if self._metric == "kl" else None
            columns.append(
                torch.cat(
                    [
                        self._rows([state[rows] for state in states[start : start + n_leaves]], targets[rows], expected)
                        for start in range(0, len(states), n_leaves)
                    ]
                )
            )
        return torch.cat(columns, dim=1)

    def _rows(self, states: Sequence[Tensor], targets: Tensor, expected: Tensor | None) -> Tensor:
        logits = self._head(states[0] if len(states) == 1 else torch.cat(list(states)))
        logits = logits.unflatten(0, (len(states), len(targets)))
        supervised = targets != IGNORED
        if self._metric == "accuracy":
            return ((logits.argmax(-1) == targets) & supervised).double().sum(-1)
        found = self._log_probabilities(logits)
        del logits
        if expected is None:
            scores = found.gather(-1, targets.clamp(min=0).expand(found.shape[:-1])[..., None])[..., 0]
        else:
            scores = (expected.exp() * found.sub_(expected)).sum(-1)
        return torch.where(supervised, scores, 0.0).double().sum(-1)

    @staticmethod
    def _log_probabilities(logits: Tensor) -> Tensor:
        """In float32; finite, so that what is impossible to both weighs nothing, and not NaN, in a divergence."""
        return logits.float().log_softmax(-1).clamp_(min=-1e30)
