"""HeadScorer: the head's loss, accuracy or KL for each row of a batch, from the last hidden state."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from search.evaluation.memory_count import Need
from search.evaluation.reference import Reference, log_probabilities
from tasks import IGNORED

Metric = Literal["loss", "accuracy", "kl"]
PIECE_BYTES = 2**21
"""Of log probabilities that are made together on a CPU."""


class HeadScorer:
    """Scores hidden states: sums over the asked positions of each row, higher is better.

    `loss` sums log probabilities of the targets, `accuracy` right answers, `kl` negative KL divergences from the reference's
    prediction. Logits are the largest thing of all: they are made of the asked positions alone, and of no more than
    `rows_at_once` rows together.
    """

    def __init__(self, head: nn.Module, metric: Metric, reference: Reference) -> None:
        self._head, self._metric, self._reference = head, metric, reference
        self._needs: dict[tuple[object, ...], Need] = {}

    def need(self, state: Tensor, inputs: Tensor, targets: Tensor) -> Need:
        """What scoring takes, measured once a length and number of asked positions, on two rows that are alike [2, time]."""
        n_asked = int((targets[0] != IGNORED).sum())
        chosen = (inputs.shape[1], n_asked, state.dtype, state.device.type, torch.is_autocast_enabled(state.device.type))
        if chosen not in self._needs:
            self._needs[chosen] = Need.of(lambda n: self.score([torch.cat([state[:n]])], inputs[:n], targets[:n], n))
        return self._needs[chosen]

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
            expected = self._reference(inputs[rows], asked) if self._metric == "kl" else None
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
        n_asked, n_together = len(answers), _positions_together(logits)
        pieces = [slice(first, first + n_together) for first in range(0, n_asked, n_together)]
        scores = torch.cat(
            [self._scores(logits[:, piece], answers[piece], None if expected is None else expected[piece]) for piece in pieces], 1
        )
        owners = torch.arange(len(targets), device=targets.device)[:, None].expand(asked.shape)[asked]
        sums = torch.zeros(len(states), len(targets), dtype=torch.float64, device=targets.device)
        return sums.index_add_(1, owners, scores.double())

    def _scores(self, logits: Tensor, answers: Tensor, expected: Tensor | None) -> Tensor:
        """Of some positions: logits [leaves, asked, vocab_size] -> [leaves, asked]."""
        if self._metric == "accuracy":
            return logits.max(-1).indices == answers
        found = log_probabilities(logits)
        if expected is None:
            return found.gather(-1, answers.expand(found.shape[:-1])[..., None])[..., 0]
        return (expected.exp() * found.sub_(expected)).sum(-1)


def _positions_together(logits: Tensor) -> int:
    """How many positions of logits [leaves, asked, vocab_size] are scored in one piece: on a CPU what stays in its caches."""
    n_leaves, n_asked, vocab_size = logits.shape
    return n_asked if logits.device.type != "cpu" else max(1, PIECE_BYTES // (4 * n_leaves * vocab_size))
