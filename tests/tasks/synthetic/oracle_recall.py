"""The recall generators of MAD, one instance and one draw at a time, in the published order of draws."""

from collections.abc import Callable
from functools import cache
from itertools import permutations

import numpy as np

from tasks import IGNORED, Task

Row = tuple[list[int], list[int]]


class AllNoiseError(ValueError):
    """Nothing was shown that could be asked: the reference fails here."""


def _shifted(tokens: list[int], supervised: list[bool], *, is_training: bool) -> Row:
    targets = [
        token if is_training or is_supervised else IGNORED for token, is_supervised in zip(tokens, supervised, strict=True)
    ]
    return tokens[:-1], targets[1:]


def in_context_recall(rng: np.random.Generator, task: Task, *, is_training: bool) -> Row:
    """With noise where the task has some."""
    n_noise, frac_noise = getattr(task, "noise_vocab_size", 0), getattr(task, "frac_noise", 0)
    n_symbols = task.vocab_size - n_noise - (not task.multi_query)
    n_keys, n_pairs = n_symbols // 2, task.seq_len // 2
    values: dict[int, int] = {}
    tokens: list[int] = []
    supervised: list[bool] = []
    safe = rng.integers(n_pairs)
    for pair in range(n_pairs - 1):
        if frac_noise > 0 and pair != safe and rng.random() < frac_noise:
            tokens += (n_symbols + rng.integers(n_noise, size=2)).tolist()
            supervised += [False, False]
            continue
        key = int(rng.integers(n_keys))
        supervised += [False, key in values and task.multi_query]
        if key not in values:
            values[key] = n_keys + int(rng.integers(n_symbols - n_keys))
        tokens += [key, values[key]]
    if not task.multi_query:
        tokens, supervised = [*tokens, task.vocab_size - 1], [*supervised, False]
    if not values:
        raise AllNoiseError
    query = list(values)[rng.integers(len(values))]
    return _shifted([*tokens, query, values[query]], [*supervised, False, True], is_training=is_training)


@cache
def _tuples(first: int, stop: int, size: int) -> list[tuple[int, ...]]:
    return list(permutations(range(first, stop), size))


def _shuffled(rng: np.random.Generator, first: int, stop: int, size: int) -> Callable[[], tuple[int, ...]]:
    tuples = _tuples(first, stop, size)
    order = np.arange(len(tuples))
    rng.shuffle(order)
    return lambda: tuples[order[rng.integers(len(tuples))]]


def fuzzy_in_context_recall(rng: np.random.Generator, task: Task, *, is_training: bool) -> Row:
    """Without `probe_is_shown`, which the reference does not have."""
    n_symbols = task.vocab_size - task.noise_vocab_size - (1 if task.multi_query else 2)
    key_sizes = range(1, task.k_motif_size + 1) if is_training else [task.k_motif_size]
    draw_key = {size: _shuffled(rng, 0, n_symbols // 2, size) for size in key_sizes}
    draw_value = {size: _shuffled(rng, n_symbols // 2, n_symbols, size) for size in range(1, task.v_motif_size + 1)}

    def draw_sizes() -> tuple[int, int]:
        key_size = 1 + int(rng.integers(task.k_motif_size)) if is_training else task.k_motif_size
        return key_size, 1 + int(rng.integers(task.v_motif_size))

    key_size, value_size = draw_sizes()
    probe_size = key_size + value_size
    probe = draw_key[key_size]()
    values = {probe: draw_value[value_size]()}
    probe_start = rng.integers(task.seq_len - 2 * probe_size)
    shown: set[tuple[int, ...]] = set()
    tokens: list[int] = []
    supervised: list[bool] = []
    while len(tokens) < task.seq_len - probe_size - (task.k_motif_size + task.v_motif_size):
        key_size, value_size = draw_sizes()
        if probe not in shown and len(tokens) >= probe_start:
            key = probe
        elif task.frac_noise > 0 and rng.random() < task.frac_noise:
            tokens += (n_symbols + rng.integers(task.noise_vocab_size, size=key_size + value_size)).tolist()
            supervised += [False] * (key_size + value_size)
            continue
        else:
            key = draw_key[key_size]()
        if key not in values:
            values[key] = draw_value[value_size]()
        tokens += [*key, *values[key]]
        supervised += [False] * len(key) + [key in shown and task.multi_query] * len(values[key])
        shown.add(key)
    prefix = [] if task.multi_query else [task.vocab_size - 1]
    tokens += [*prefix, *probe, *values[probe]]
    supervised += [False] * (len(prefix) + len(probe)) + [True] * len(values[probe])
    n_pads = task.seq_len + 1 - len(tokens)
    return _shifted([n_symbols + task.noise_vocab_size] * n_pads + tokens, [False] * n_pads + supervised, is_training=is_training)
