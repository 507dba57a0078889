"""The data of a MAD trial: instances of its task setting, as batches on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from configs import ConfigError
from search.jobs.mad.trial import TrialSpec
from search.training.batches import Batch, EpochBatches
from search.training.devices import resolve_device
from tasks import IGNORED, Examples, Split, Task, cached, draw


@dataclass(frozen=True)
class Data:
    """The splits of one setting and seed, on the device; mode `mad` has no validation split."""

    train: EpochBatches
    validation: EpochBatches | None
    test: EpochBatches

    @classmethod
    def of(cls, spec: TrialSpec, seed: int, folder: Path | None) -> Data:
        """Draw the splits of a trial's setting, or read them from the folder."""
        device = resolve_device(spec.train.device)
        setting = spec.setting
        sizes: dict[Split, int] = {"train": setting.n_train, "validation": setting.n_validation, "test": setting.n_test}

        def batches(split: Split) -> EpochBatches:
            examples = examples_of(setting.instance(split), sizes[split], seed, split, folder)
            if split == "test" and setting.test_seq_len is not None:
                examples = beyond(setting.instance().input_length, examples)
            if not (examples.targets != IGNORED).any():
                raise ConfigError(f"{split}: none of the {len(examples)} instances has a supervised position")
            return EpochBatches(examples, spec.batch_size, seed=seed, device=device)

        return cls(batches("train"), batches("validation") if spec.mode == "clean" else None, batches("test"))


def beyond(n_positions: int, examples: Examples) -> Examples:
    """The same instances, asked at the positions from `n_positions` on alone; shorter ones at all of theirs."""
    if examples.inputs.shape[1] <= n_positions:
        return examples
    targets = examples.targets.copy()
    targets[:, :n_positions] = IGNORED
    return Examples(inputs=examples.inputs, targets=targets)


@lru_cache(maxsize=6)
def examples_of(task: Task, n_examples: int, seed: int, split: Split, folder: Path | None) -> Examples:
    """The instances of one split; the last few are kept, since the trials of a grid follow each other on the same data."""
    if folder is None:
        return draw(task, n_examples, seed=seed, split=split)
    return cached(task, n_examples, seed=seed, split=split, folder=folder)


def in_order(data: Sequence[Data], split: Split) -> Iterator[Batch]:
    """The evaluation batches of a pack: shared, or one a member along a leading dimension."""
    distinct = list({id(single): single for single in data}.values())
    if len(distinct) == 1:
        yield from getattr(distinct[0], split).in_order()
        return
    for batches in zip(*(getattr(single, split).in_order() for single in data), strict=True):
        inputs, targets = zip(*batches, strict=True)
        yield torch.stack(inputs), torch.stack(targets)
