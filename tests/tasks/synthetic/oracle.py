"""The MAD generators, one instance and one draw at a time, in the published order of draws: the judges of the fast samplers."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import numpy as np

from tasks import IGNORED, Task
from tests.tasks.synthetic.oracle_recall import AllNoiseError, Row, fuzzy_in_context_recall, in_context_recall


@cache
def key_value_map(vocab_size: int, map_seed: int) -> tuple[list[int], list[int]]:
    """The keys and the values of memorization, in the order that pairs them."""
    rng = np.random.default_rng(map_seed)
    keys = list(range((vocab_size - 1) // 2))
    values = list(range(len(keys), vocab_size - 1))
    rng.shuffle(keys)
    rng.shuffle(values)
    return keys, values


def memorization(rng: np.random.Generator, task: Task) -> Row:
    keys, values = key_value_map(task.vocab_size, task.map_seed)
    rng.integers(task.seq_len // 2)
    inputs: list[int] = []
    targets: list[int] = []
    for _ in range(task.seq_len // 2):
        index = rng.integers(len(keys))
        inputs += [keys[index], task.vocab_size - 1]
        targets += [IGNORED, values[index]]
    return inputs, targets


def compression(rng: np.random.Generator, task: Task) -> Row:
    tokens = [*rng.integers(task.vocab_size - 1, size=task.seq_len - 1).tolist(), task.vocab_size - 1]
    return tokens, tokens


def selective_copying(rng: np.random.Generator, task: Task, *, legacy: np.random.RandomState) -> Row:
    n_data, blank, copy = task.n_tokens_to_copy, task.vocab_size - 2, task.vocab_size - 1
    data = rng.integers(task.vocab_size - 2, size=n_data).tolist()
    slots = legacy.randint(0, n_data, task.seq_len - 2 * n_data - 1).tolist()
    tokens = [token for slot, datum in enumerate(data) for token in [blank] * slots.count(slot) + [datum]]
    return [*tokens, copy] + [blank] * n_data, [IGNORED] * (task.seq_len - n_data) + data


def kind_of(task: Task) -> str:
    return type(task).__module__.rpartition(".")[2]


def instances(task: Task, split: str, rng: np.random.Generator, legacy: np.random.RandomState) -> Callable[[], Row]:
    """Draws the next instance at each call; AllNoiseError where the reference fails."""
    is_training = split == "train"
    return {
        "in_context_recall": partial(in_context_recall, rng, task, is_training=is_training),
        "noisy_in_context_recall": partial(in_context_recall, rng, task, is_training=is_training),
        "fuzzy_in_context_recall": partial(fuzzy_in_context_recall, rng, task, is_training=is_training),
        "memorization": partial(memorization, rng, task),
        "compression": partial(compression, rng, task),
        "selective_copying": partial(selective_copying, rng, task, legacy=legacy),
    }[kind_of(task)]


def generate(task: Task, n_examples: int, seed: int = 12345) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of `train`, then of `test`, out of one stream as in the reference; rows of noise are drawn again."""
    rng, legacy = np.random.default_rng(seed), np.random.RandomState(seed)
    splits = {}
    for split in ("train", "test"):
        draw = instances(task, split, rng, legacy)
        rows: list[Row] = []
        while len(rows) < n_examples:
            with suppress(AllNoiseError):
                rows.append(draw())
        splits[split] = (np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))
    return splits
