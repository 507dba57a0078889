"""MemoryPlan: how many rows and trie nodes fit a given memory, measured on a row or two."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from configs import ConfigError
from models import Supernet
from search.evaluation.head_scores import HeadScorer
from search.evaluation.memory_count import Need
from search.evaluation.trie import PlacementTrie
from tasks import IGNORED

CPU_CALL_BYTES = 2**19
"""Of the hidden states that go into one call on a CPU (of logits, eight times as much). Larger ones leave the caches, and each of
their tensors is a fresh mapping of pages: with 32 MiB a position takes twice as long."""

CPU_CALL_POSITIONS = 1024
"""That go into one call on a CPU at least, if the memory allows: in bf16 every call casts the weights of a block anew."""


@dataclass(frozen=True)
class MemoryPlan:
    """Half of the memory is for the hidden states that are held, half for what one call needs inside.

    `rows` is how many rows of a batch may be walked together at most, `rows_level_by_level` how many so that no level has to be
    cut into chunks, `rows_at_once` how many go into one call of a block, `leaf_rows` how many into one call of the head.
    """

    rows: int
    rows_level_by_level: int
    rows_at_once: int
    leaf_rows: int
    n_states: int
    """Hidden states of one row that may be held."""

    @classmethod
    def of(
        cls, supernet: Supernet, trie: PlacementTrie, head_scorer: HeadScorer, row: tuple[Tensor, Tensor], max_eval_memory: int
    ) -> Self:
        """Measure one row of a batch, its inputs and targets [1, time]; ConfigError if even that does not fit."""
        inputs, targets = (tensor.expand(2, -1) for tensor in row)
        state = supernet.rack.embedding(inputs)
        n_bytes = state[:1].nbytes
        inside = _METERS.setdefault(supernet, _Meter(supernet)).need(trie, state)
        leaf = head_scorer.need(state, inputs, targets)
        half = max_eval_memory // 2
        least = max(trie.least * n_bytes, inside.bytes_of(1), leaf.bytes_of(1))
        if least > half:
            raise ConfigError(
                f"max_eval_memory: {max_eval_memory:,} bytes are too few; to score a single sequence of {inputs.shape[1]} takes "
                f"{2 * least:,}"
            )
        n_states, rows_at_once, leaf_rows = half // n_bytes, inside.rows_in(half), leaf.rows_in(half)
        if state.device.type == "cpu":
            rows_at_once = min(rows_at_once, max(1, CPU_CALL_BYTES // n_bytes, CPU_CALL_POSITIONS // state.shape[1]))
            n_asked = int((targets[0] != IGNORED).sum())  # of which there is one at least
            leaf_rows = min(leaf_rows, max(1, 8 * CPU_CALL_BYTES // (4 * n_asked * supernet.rack.vocab_size)))
        return cls(
            rows=min(n_states // trie.least, rows_at_once),
            rows_level_by_level=min(n_states // trie.peak, rows_at_once),
            rows_at_once=rows_at_once,
            leaf_rows=leaf_rows,
            n_states=n_states,
        )


class _Meter:
    """What the blocks of a supernet need, each kind of block measured once for each length, precision and kind of device."""

    def __init__(self, supernet: Supernet) -> None:
        specs = [block for stack in supernet.space.stacks for block in stack.expanded()]
        first = {spec: level for level, spec in reversed(list(enumerate(specs)))}
        self._kinds = [first[spec] for spec in specs]
        self._needs: dict[tuple[object, ...], Need] = {}

    def need(self, trie: PlacementTrie, state: Tensor) -> Need:
        """The most that any block of the walk needs."""
        settings = (state.shape[1], state.dtype, state.device.type, torch.is_autocast_enabled(state.device.type))
        most = Need(0, 0)
        for level, keys in enumerate(trie.keys()):
            for key in keys:
                chosen = (self._kinds[level], key, *settings)
                if chosen not in self._needs:
                    trie.activate(level, key)
                    self._needs[chosen] = Need.of(partial(_call, trie.block(level), state))
                most |= self._needs[chosen]
        return most


_METERS: WeakKeyDictionary[Supernet, _Meter] = WeakKeyDictionary()


def _call(block: Callable[[Tensor], Tensor], state: Tensor, n_rows: int) -> Tensor:
    """Several parents are copied into one tensor first, so the input counts too."""
    return block(torch.cat([state[:n_rows]]))
