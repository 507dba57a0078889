"""A data loader for the stack that learns: batches of any loader, masked by its time, with what its trunk makes of them."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from configs import ConfigError
from search.activations.cache import ActivationCache
from tasks import IGNORED
from tasks.objectives.shared.objective import Sequences
from tasks.samples.loader_batches import as_sequences
from tasks.samples.objective_batches import TargetBatch
from tasks.samples.time_step_masking import TimeStepMasking

HiddenBySample = Mapping[int, Tensor] | Tensor
"""Hidden states [time, d_model] by sample id; of a tensor, the samples are its rows."""


def compute_loss(logits: Tensor, targets: Tensor, loss_mask: Tensor) -> Tensor:
    """The mean cross entropy over the positions that a mask has, 0 where it has none.

    Args:
        logits: [batch, time, vocab_size].
        targets: [batch, time]; what stands outside of the mask is not read.
        loss_mask: [batch, time] or [time], bool; or floats, what each position counts.
    """
    weights = loss_mask.expand(targets.shape).to(logits.device, torch.float32)
    known = targets.to(logits.device).where(weights > 0, IGNORED)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), known.flatten(), ignore_index=IGNORED, reduction="none")
    total = weights.sum()
    return (losses * weights.flatten()).sum() / total.where(total > 0, 1.0)


class ProgressiveDataLoader:
    """Goes through a loader again and again; each time is an epoch, whose masks are new, and the same in every run.

    A batch is a mapping of tensors:

    - `input_ids` [B, T], corrupted, and `targets` [B, T], -100 where nothing is asked; `training_objective`, its name;
    - `combined_masks` [B, T] bool, the positions that are asked, which `compute_loss` takes (of clm not the last one: no token
      follows it); `masks` [B, T], those whose tokens are masked; `clm_mask` [T], False where no sequence could be asked;
      `weights` [B, T], with which losses add up to the loss; `attention_mask` [B, T], False at pads (None without);
    - `sample_id` [B], and `masking_ids` [B], which of the sample's maskings this is;
    - `stack_idx`, and `time_step` [B] (None without times);
    - `hidden` [B, T, d_model], what the trunk makes of these inputs, also called `trunk_activations` (None without a trunk).

    Args:
        base_dataloader: yields what `as_sequences` reads.
        masking_strategy: what is asked, and when.
        stack_idx: the stack that learns, by the order of creation.
        trunk_activations: None where there is no trunk yet. A cache, whose trunk reads `input_ids`, and in one more column the
            time step if time is an input. Or hidden states by sample id, in a mapping or as the rows of a tensor: of the first
            masking, which is the only one then.
        cache_activations: false has the trunk of a cache compute at every batch, and keeps nothing; None is what the
            configuration of the masking says.

    Raises:
        ConfigError: where hidden states that are kept could not be those of the inputs, or the mask is no known token.
    """

    def __init__(
        self,
        base_dataloader: Iterable[Any],
        masking_strategy: TimeStepMasking,
        stack_idx: int = 0,
        trunk_activations: ActivationCache | HiddenBySample | None = None,
        *,
        cache_activations: bool | None = None,
    ) -> None:
        self.base_dataloader, self.masking_strategy, self.stack_idx = base_dataloader, masking_strategy, stack_idx
        self.trunk_activations = trunk_activations
        said = masking_strategy.options.cache_activations if cache_activations is None else cache_activations
        self.cache_activations = said is not False
        self.epoch = 0
        self._time, self._objective = masking_strategy.stage_time(stack_idx), masking_strategy.objective()
        self._check()

    def _check(self) -> None:
        options, is_cache = self.masking_strategy.options, isinstance(self.trunk_activations, ActivationCache)
        if self.trunk_activations is not None and not is_cache and not self.cache_activations:
            raise ConfigError("cache_activations: false needs a trunk that computes, in an ActivationCache; got hidden states")
        if self._keeps and self._time.interpretation == "input" and self._time.sampling == "batch":
            raise ConfigError("time_sampling: batch gives a sample another time at every step, and nothing to keep; give sample")
        is_tokenless = options.mask_token_id is None or options.random_fraction > 0
        if self._objective.corrupts and is_tokenless and self.masking_strategy.vocab_size is None:
            raise ConfigError("masking_strategy: without a vocab_size it knows no tokens to put at masked positions")

    @property
    def _keeps(self) -> bool:
        """Whether hidden states are there for more than one batch."""
        return self.trunk_activations is not None and self.cache_activations

    def __len__(self) -> int:
        if not isinstance(self.base_dataloader, Sized):
            raise TypeError(f"a {type(self.base_dataloader).__name__} has no length, so its progressive loader has none")
        return len(self.base_dataloader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        variant = self._variant(epoch)
        for position, found in enumerate(self.base_dataloader):
            batch = as_sequences(found)
            step = (epoch << 32) + position  # a loader need not have a length
            target_batch = self.masking_strategy.apply(batch, self.stack_idx, variant=variant, step=step)
            yield self._batch(batch, target_batch, variant)

    def _variant(self, epoch: int) -> int:
        if not self._objective.corrupts and self._time.interpretation != "input":
            return 0
        if not self._keeps:
            return epoch
        is_cache = isinstance(self.trunk_activations, ActivationCache)
        return epoch % self.masking_strategy.options.cache_variants if is_cache else 0

    def _batch(self, batch: Sequences, target_batch: TargetBatch, variant: int) -> dict[str, Any]:
        inputs, targets = torch.from_numpy(target_batch.inputs), torch.from_numpy(target_batch.targets)
        is_supervised = targets != IGNORED
        sample_ids = torch.from_numpy(batch.sample_ids.astype(np.int64))
        variants = torch.full((len(inputs),), variant, dtype=torch.int32)
        time_step = None if self._time.interpretation == "none" else torch.from_numpy(target_batch.time_steps)
        hidden = self._hidden(sample_ids, variants, inputs, time_step)
        return {
            "input_ids": inputs,
            "targets": targets,
            "training_objective": self.masking_strategy.options.training_objective,
            "combined_masks": is_supervised,
            "masks": is_supervised if self._objective.corrupts else torch.zeros_like(is_supervised),
            "clm_mask": torch.from_numpy(target_batch.clm_mask),
            "weights": torch.from_numpy(target_batch.weights),
            "attention_mask": None if batch.attention_mask is None else torch.from_numpy(batch.attention_mask),
            "sample_id": sample_ids,
            "masking_ids": variants,
            "stack_idx": self.stack_idx,
            "time_step": time_step,
            "hidden": hidden,
            "trunk_activations": hidden,
        }

    def _hidden(self, sample_ids: Tensor, variants: Tensor, inputs: Tensor, time_step: Tensor | None) -> Tensor | None:
        given = self.trunk_activations
        if given is None:
            return None
        if isinstance(given, ActivationCache):
            if self._time.interpretation == "input" and time_step is not None:
                inputs = torch.cat([inputs, time_step[:, None]], dim=1)
            if self.cache_activations:
                return given.hidden(sample_ids, variants, inputs)
            return given.trunk(inputs, shape=given.key.shape, dtype=given.key.torch_dtype).to(inputs.device)
        known = range(len(given)) if isinstance(given, Tensor) else given
        if missing := [sample for sample in sample_ids.tolist() if sample not in known]:
            text = "give the loader's batches a sample_id, by which trunk_activations have them"
            raise ConfigError(f"trunk_activations: none of sample {missing[0]}, {len(missing)} of the batch are missing; {text}")
        return given[sample_ids] if isinstance(given, Tensor) else torch.stack([given[sample] for sample in sample_ids.tolist()])
