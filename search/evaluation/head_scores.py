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
    prediction. Logits are the largest thing of all: they are made of the asked positions alone, and of no more than
    `rows_at_once` rows together.
    """

    def __init__(self, head: nn.Module, metric: Metric, reference: Reference) -> None:
        self._head, self._metric, self._reference = head, metric, reference

    def score(self, states: Sequence[Tensor], inputs: Tensor, targets: Tensor, rows_at_once: int) -> Tensor:
        """States of some leaves, each [rows, time, d_model] -> [leaves, rows] float64."""
        n_leaves = max(1, rows_at_once // len(inputs))
        columns = []
        for first in range(0, len(inputs), rows_at_once):
            rows = slice(first, first + rows_at_once)
            asked = targets[rows] != IGNORED
            if not bool(asked.any()):
                columns.append(torch.zeros(len(states), len(asked), dtype=torch.float64, device=asked.device))
                continue
            expected = self._log_probabilities(self._reference(inputs[rows], asked)) if self._metric == "kl" else None
            columns.append(
                torch.cat(
                    [
                        self._rows([state[rows][asked] for state in states[start : start + n_leaves]], targets[rows], expected)
                        for start in range(0, len(states), n_leaves)
                    ]
                )
            )
        return torch.cat(columns, dim=1)

    def _rows(self, states: Sequence[Tensor], targets: Tensor, expected: Tensor | None) -> Tensor:
        """States of the asked positions [asked, d_model], and what the reference expects there -> [leaves, rows]."""
        logits = self._head(states[0][None] if len(states) == 1 else torch.stack(list(states)))
        asked = targets != IGNORED
        answers = targets[asked]
        if self._metric == "accuracy":
            scores = (logits.argmax(-1) == answers).double()
        else:
            found = self._log_probabilities(logits)
            del logits
            if expected is None:
                scores = found.gather(-1, answers.expand(found.shape[:-1])[..., None])[..., 0]
            else:
                scores = (expected.exp() * found.sub_(expected)).sum(-1)
        owners = torch.arange(len(targets), device=targets.device)[:, None].expand(asked.shape)[asked]
        sums = torch.zeros(len(states), len(targets), dtype=torch.float64, device=targets.device)
        return sums.index_add_(1, owners, scores.double())

    @staticmethod
    def _log_probabilities(logits: Tensor) -> Tensor:
        """In float32; finite, so that what is impossible to both weighs nothing, and not NaN, in a divergence."""
        return logits.float().log_softmax(-1).clamp_(min=-1e30)
