"""The data of a MAD trial: instances of its task setting, as batches on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from configs import ConfigError
from search.jobs.mad.benchmark_data import DataFolders, benchmark_splits, fingerprint_of_splits
from search.jobs.mad.trial import TrialSpec
from search.training.batches import Batch, EpochBatches
from search.training.devices import resolve_device
from tasks import IGNORED, Examples, Split, Task, cached, draw


@dataclass(frozen=True)
class Data:
    """The splits of one setting and seed, on the device; mode `mad` has no validation split.

    `fingerprint` is that of arrays that were read from MAD's folder, None of those that were drawn.
    """

    train: EpochBatches
    validation: EpochBatches | None
    test: EpochBatches
    fingerprint: str | None = None

    @classmethod
    def of(cls, spec: TrialSpec, seed: int, folders: DataFolders = DataFolders()) -> Data:  # noqa: B008 - it is frozen
        """Draw the splits of a trial's setting, or read them; of MAD's folder, which has no validation, that is drawn."""
        device = resolve_device(spec.train.device)
        setting, benchmark = spec.setting, folders.benchmark
        sizes: dict[Split, int] = {"train": setting.n_train, "validation": setting.n_validation, "test": setting.n_test}
        read = {} if benchmark is None else benchmark_splits(benchmark, setting, seed)

        def batches(split: Split) -> EpochBatches:
            examples = read.get(split) or examples_of(setting.instance(split), sizes[split], seed, split, folders.kept)
            if split == "test" and setting.test_seq_len is not None:
                examples = beyond(setting.instance().input_length, examples)
            if not (examples.targets != IGNORED).any():
                raise ConfigError(f"{split}: none of the {len(examples)} instances has a supervised position")
            return EpochBatches(examples, spec.batch_size, seed=seed, device=device)

        validation = batches("validation") if spec.mode == "clean" else None
        return cls(batches("train"), validation, batches("test"), fingerprint_of_splits(read) if read else None)


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
