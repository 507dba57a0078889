"""Losses and accuracies of several models at once, on the device."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.rack.reports import collecting
from tasks import IGNORED

NAMES = ("accuracy", "loss", "macro_accuracy", "batch_loss", "perplexity")
"""What `evaluate` returns of any model."""


PER_BATCH = ("macro_accuracy", "batch_loss", "perplexity")


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats over the asked positions of each model.

    Args:
        logits: [models, batch, time, vocab_size].
        targets: [models, batch, time], or [batch, time] when all models saw the same batch.

    Returns:
        [models]; NaN where a batch asks nothing.
    """
    targets = targets.expand(logits.shape[:-1])
    if len(logits) == 1:
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED).unsqueeze(0)
    losses = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(len(logits), -1).sum(1) / (targets != IGNORED).flatten(1).sum(1)


def batch_sums(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What one evaluation batch adds up to, each [models]; all zeros where it asks nothing.

    `macro_accuracy` is the mean recall over the classes that are a target or a prediction in this batch: a class that is only
    predicted counts as zero recall. It is what the MAD reference reports, averaged over batches by their size.
    """
    targets = targets.expand(logits.shape[:-1]).flatten(1)
    n_models, vocab_size = len(logits), logits.shape[-1]
    logits = logits.flatten(1, 2).float()
    supervised = targets != IGNORED
    loss = (
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none").view(n_models, -1).sum(1)
    )
    predictions = logits.max(-1).indices  # argmax is no faster, and slower of halves
    is_correct = supervised & (predictions == targets)

    def per_class(classes: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros(n_models, vocab_size, device=logits.device).scatter_add_(1, classes, weights.float())

    true = per_class(targets.clamp(min=0), supervised)
    present = (true + per_class(predictions, supervised)) > 0
    recall = per_class(predictions, is_correct) / true.clamp(min=1)
    n_supervised = supervised.sum(1)
    return {
        "n_supervised": n_supervised,
        "n_correct": is_correct.sum(1),
        "loss": loss,
        "mean_loss": loss / n_supervised.clamp(min=1),
        "macro_accuracy": (recall * present).sum(1) / present.sum(1).clamp(min=1),
    }


@torch.no_grad()
def evaluate(forward: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Metrics over a data set, each [models] float64 on the CPU; the one transfer is at the end.

    Args:
        forward: inputs [batch, time] (or [models, batch, time]) to logits [models, batch, time, vocab_size].
        batches: pairs of inputs and targets.

    Returns:
        `accuracy` and `loss` over all asked positions (micro); `macro_accuracy`, `batch_loss` and `perplexity` as the MAD
        reference has them: per batch, then averaged over batches by their size (perplexity is the mean of exp(batch loss)).
        Batches without a supervised position count in none of these; without any at all they are NaN.
        What parts of the model report is there by its own name, averaged in the same way.
    """
    totals: dict[str, Tensor] = {}
    n_instances = 0
    for inputs, targets in batches:
        with collecting() as found:
            logits = forward(inputs)
        sums = batch_sums(logits, targets)
        size = targets.shape[-2]
        n_instances += size
        parts = {name: value.expand(len(logits)) * size for name, value in found.metrics.items()}
        n_asked = size * (sums["n_supervised"] > 0)
        parts |= {
            "n_supervised": sums["n_supervised"],
            "n_correct": sums["n_correct"],
            "loss": sums["loss"],
            "n_asked": n_asked,
            "macro_accuracy": sums["macro_accuracy"] * n_asked,
            "batch_loss": sums["mean_loss"] * n_asked,
            "perplexity": sums["mean_loss"].double().exp() * n_asked,
        }
        totals = {name: value.double() + totals.get(name, 0.0) for name, value in parts.items()}
    sums = dict(zip(totals, torch.stack(list(totals.values())).cpu(), strict=True))
    n_supervised, n_correct, loss, n_asked = (sums.pop(name) for name in ("n_supervised", "n_correct", "loss", "n_asked"))
    averages = {name: total / (n_asked if name in PER_BATCH else n_instances) for name, total in sums.items()}
    return {"accuracy": n_correct / n_supervised, "loss": loss / n_supervised, **averages}


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy in nats, summed by the weights of the positions; logits [..., vocab_size], the others [...]."""
    losses = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return (losses * weights.flatten()).sum()
