"""Fills a cache from that of a shorter trunk: only the stacks that are new are run."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from configs import ConfigError
from search.activations.cache import ActivationCache
from search.activations.key import CacheKey
from search.activations.rows import ComputeRows, Names, to_bytes
from search.activations.trunk import Trunk, has_tensors_of

OWN_FIELDS = {"trunk_hash", "architecture"}
"""In what else the keys of two trunks differ, they differ in the rows too."""


@dataclass(frozen=True)
class PreviousCache:
    """The cache of a lower part of a trunk, and what the rest of the trunk makes of it.

    `above` goes from hidden states [rows_per_forward, time, d_model] of that part, and the inputs of these rows, to hidden states
    of the whole: the bits that all of the trunk makes of the inputs. That holds where rows are kept in the type that
    they are computed in. Rows that the previous cache has not are computed by its trunk.
    """

    cache: ActivationCache
    above: Callable[[Tensor, Tensor], Tensor]

    def rows_for(self, key: CacheKey, trunk: Trunk) -> ComputeRows:
        """How rows of the key are computed from here; the first call computes some of them from the inputs too, and compares.

        Raises:
            ConfigError: if this is no cache of a part of the trunk for the same inputs; in the first call, if the bits differ, or
                could for other rows.
        """
        self._refuse_if_other(key, trunk)
        is_proven = False

        def compute(names: Names, inputs: Tensor) -> Tensor:
            nonlocal is_proven
            below = self.cache.hidden(names.samples, names.variants, inputs)
            hidden = trunk(below, inputs, shape=key.shape, dtype=key.torch_dtype, forward=self.above)
            if not is_proven:
                some = slice(trunk.rows_per_forward)
                _refuse_if_different(key, trunk, inputs[some], hidden[some])
                is_proven = True
            return hidden

        return compute

    def _refuse_if_other(self, key: CacheKey, trunk: Trunk) -> None:
        own, others = key.to_dict(), self.cache.key.to_dict()
        if differing := [name for name in own if name not in OWN_FIELDS and own[name] != others[name]]:
            texts = [f"{name} is {own[name]!r}, there {others[name]!r}" for name in differing]
            raise ConfigError(f"the previous cache holds other hidden states ({'; '.join(texts)}); fill this one from inputs")
        if not has_tensors_of(trunk.module, self.cache.trunk.module):
            text = f"the previous cache is of a trunk ({self.cache.trunk.hash}) that is no part of this one ({trunk.hash})"
            raise ConfigError(f"{text}: some weight has changed since; fill this cache from inputs")


def _refuse_if_different(key: CacheKey, trunk: Trunk, inputs: Tensor, hidden: Tensor) -> None:
    whole = trunk(inputs, shape=key.shape, dtype=key.torch_dtype)
    if trunk.computes_in != key.torch_dtype:
        text = f"hidden states are computed in {trunk.computes_in} and kept in {key.torch_dtype}"
        raise ConfigError(f"{text}: what is rounded cannot be gone on from; keep them as they are, or fill from inputs")
    if not np.array_equal(to_bytes(whole), to_bytes(hidden)):
        raise ConfigError("what stands above the previous trunk does not make of its hidden states what this trunk computes")
