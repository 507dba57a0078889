"""Reads a data loader once into samples that training can draw from many times."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from configs import ConfigError, DataConfig, TrainingConfig
from tasks import IGNORED
from tasks.samples.loader_batches import as_sequences
from tasks.samples.samples import ArraySamples, Samples

N_EVALUATIONS = 10
EVALUATED_BATCHES = 4


def loader_samples(dataloader: Iterable[Any], data: DataConfig, *, vocab_size: int) -> ArraySamples:
    """All samples of a loader, which is gone through once, in memory; rows that are shorter than others end in pads.

    Raises:
        ConfigError: where there are none, or some batches have targets and some have not.
    """
    found = [as_sequences(batch) for batch in dataloader]
    if not found:
        raise ConfigError("the data loader yields no batches")
    if len({each.targets is None for each in found}) > 1:
        raise ConfigError("some batches of the data loader have targets, and some have none")
    longest = max(each.tokens.shape[1] for each in found)
    length = longest if data.seq_len is None else min(longest, data.seq_len)
    tokens = np.concatenate([_fitted(each.tokens, length, 0) for each in found])
    attention_mask = np.concatenate([_fitted(each.kept, length, 0) for each in found])
    if data.pad_token_id is not None:
        attention_mask &= tokens != data.pad_token_id
    targets = None
    if found[0].targets is not None:
        targets = np.concatenate([_fitted(each.targets, length, IGNORED) for each in found])
    return ArraySamples(
        tokens, vocab_size=vocab_size, attention_mask=None if attention_mask.all() else attention_mask, targets=targets
    )


def _fitted(array: Any, length: int, filling: int) -> np.ndarray:
    cut = array[:, :length]
    return np.pad(cut, ((0, 0), (0, length - cut.shape[1])), constant_values=filling)


def steps_between_evaluations(training: TrainingConfig) -> int:
    """So many that there are about ten of them."""
    return max(training.max_steps // N_EVALUATIONS, 1)


def evaluated_batches(training: TrainingConfig, samples: Samples) -> tuple[int, int]:
    """How many batches an evaluation looks at, and their rows."""
    n_samples = samples.n_samples("validation")
    n_rows = min(training.batch_size, n_samples)
    return min(n_samples // n_rows, EVALUATED_BATCHES), n_rows
