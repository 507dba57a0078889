"""Reads a batch of any data loader (tensors, pairs, mappings) as sequences of tokens."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs import ConfigError
from tasks.objectives.shared.objective import Sequences

TOKENS = ("input_ids", "inputs", "tokens")
TARGETS = ("targets", "labels")
SAMPLE_IDS = ("sample_id", "sample_ids")
ATTENTION_MASK = ("attention_mask", "keep")


def as_sequences(batch: Any) -> Sequences:
    """Tokens, pads, targets and names of a batch.

    A mapping has tokens [n, time] at one of `input_ids`, `inputs`, `tokens`, and may have targets at `targets` or `labels`, where
    pads are (0) at `attention_mask` or `keep`, and `sample_id` or `sample_ids` [n]. A pair is tokens and targets; anything else
    is tokens. Arrays are whatever NumPy reads. Without ids, a sample is named by a hash of its tokens: so it has the same name
    wherever a shuffled loader puts it.

    Raises:
        ValueError: where there are no tokens, or shapes do not fit (a ConfigError is one).
    """
    attention_mask = sample_ids = None
    if isinstance(batch, Mapping):
        found = {keys[0]: _first(batch, keys) for keys in (TOKENS, TARGETS, SAMPLE_IDS, ATTENTION_MASK)}
        if found["input_ids"] is None:
            raise ConfigError(f"a batch needs tokens at one of {', '.join(TOKENS)}; this one has {', '.join(map(str, batch))}")
        tokens, targets, sample_ids, attention_mask = found.values()
    elif isinstance(batch, tuple | list):
        if not 1 <= len(batch) <= 2:
            raise ConfigError(f"a batch is a mapping, tokens, or a pair of tokens and targets; got {len(batch)} parts")
        tokens, targets = batch if len(batch) == 2 else (batch[0], None)
    else:
        tokens, targets = batch, None
    tokens = np.asarray(tokens)
    ids = None if sample_ids is None else np.asarray(sample_ids).reshape(-1)
    return Sequences(
        tokens=tokens,
        sample_ids=_named_by_tokens(tokens) if ids is None else ids,
        attention_mask=None if attention_mask is None else np.asarray(attention_mask) != 0,
        targets=None if targets is None else np.asarray(targets),
    )


def _first(batch: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((batch[key] for key in keys if batch.get(key) is not None), None)


def _named_by_tokens(tokens: np.ndarray) -> np.ndarray:
    """[n] int64, 63 bits of each."""
    rows = np.ascontiguousarray(tokens, dtype=np.int64) if tokens.ndim == 2 else np.empty((0, 0), dtype=np.int64)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return (np.frombuffer(digests, dtype="<u8") >> np.uint64(1)).astype(np.int64)
