"""What is measured of each instance, to tell whether two generators draw from one distribution."""

from itertools import groupby

import numpy as np

from tasks import IGNORED, Task

Measures = dict[str, np.ndarray]


def whole_rows(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The sequences with the last token, which is asked but not shown."""
    return np.concatenate([inputs, targets[:, -1:]], axis=1)


def of_any(task: Task, inputs: np.ndarray, targets: np.ndarray) -> Measures:
    supervised = targets != IGNORED
    measures = {
        "targets_per_instance": supervised.sum(axis=1),
        "distinct_tokens_per_instance": _n_distinct(inputs, 0, task.vocab_size),
    }
    measures["targets_squared"] = measures["targets_per_instance"] ** 2
    for position in range(inputs.shape[1]):
        measures[f"target_position_rate {position}"] = supervised[:, position]
    if task.vocab_size <= 64:
        for token in range(task.vocab_size):
            measures[f"input_token_freq {token}"] = (inputs == token).mean(axis=1)
            measures[f"targets of token {token}"] = (targets == token).sum(axis=1)
            measures[f"first_token_freq {token}"] = inputs[:, 0] == token
            measures[f"last_input_token_freq {token}"] = inputs[:, -1] == token
            measures[f"last_target_freq {token}"] = targets[:, -1] == token
    return measures


def _n_distinct(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    return np.array([len(set(row[(row >= start) & (row < stop)].tolist())) for row in rows])


def _of_recall(task, inputs, targets):
    n_symbols = task.vocab_size - getattr(task, "noise_vocab_size", 0)
    return {
        "distinct_keys": _n_distinct(inputs, 0, n_symbols // 2),
        "distinct_values": _n_distinct(whole_rows(inputs, targets), n_symbols // 2, n_symbols),
        "noise_fraction": (inputs >= n_symbols).mean(axis=1),
        "repeats": (inputs[:, 2:] == inputs[:, :-2]).sum(axis=1),
    }


def _pairs(task, row):
    n_keys = (task.vocab_size - 1) // 2
    tokens = [token for token in row.tolist() if token != task.vocab_size - 1]
    runs = [tuple(run) for _, run in groupby(tokens, key=lambda token: token < n_keys)]
    return list(zip(runs[::2], runs[1::2], strict=True))


def _of_fuzzy(task, inputs, targets):
    rows = [_pairs(task, row) for row in whole_rows(inputs, targets)]
    measures = {
        "pad_count": (inputs == task.vocab_size - 1).sum(axis=1),
        "pairs_per_instance": np.array([len(pairs) for pairs in rows]),
        "distinct_keys": np.array([len({key for key, _ in pairs}) for pairs in rows]),
        "final_query_never_shown_before": np.array([pairs[-1][0] not in {key for key, _ in pairs[:-1]} for pairs in rows]),
    }
    for place, name in enumerate(("key", "value")):
        for size in (1, 2, 3):
            shares = [sum(len(pair[place]) == size for pair in pairs) for pairs in rows]
            measures[f"{name}s of size {size}"] = np.array(shares)
    return measures


def _of_memorization(task, inputs, _targets):
    return {"distinct_keys_per_instance": _n_distinct(inputs, 0, task.vocab_size - 1), "key_mean": inputs[:, ::2].mean(axis=1)}


def _of_compression(_task, inputs, _targets):
    return {"equal_neighbours": (inputs[:, 1:] == inputs[:, :-1]).sum(axis=1)}


def _of_selective_copying(task, inputs, _targets):
    n_data = task.n_tokens_to_copy
    is_data = inputs[:, : -n_data - 1] < task.vocab_size - 2
    places = np.nonzero(is_data)[1].reshape(-1, n_data)
    blanks = np.diff(places, axis=1, prepend=-1) - 1
    expected = (task.seq_len - 2 * n_data - 1) / n_data
    measures = {"token_right_before_copy_is_data": is_data[:, -1]}
    for token in range(n_data):
        measures[f"blanks_before_token {token}"] = blanks[:, token]
        measures[f"blanks_before_token {token} squared"] = (blanks[:, token] - expected) ** 2
    return measures


_OF_KIND = {
    "in_context_recall": _of_recall,
    "noisy_in_context_recall": _of_recall,
    "fuzzy_in_context_recall": _of_fuzzy,
    "memorization": _of_memorization,
    "compression": _of_compression,
    "selective_copying": _of_selective_copying,
}


def measure(kind: str, task: Task, inputs: np.ndarray, targets: np.ndarray) -> Measures:
    """Numbers [n] by name."""
    return of_any(task, inputs, targets) | _OF_KIND[kind](task, inputs, targets)


def deviations(first: Measures, second: Measures) -> dict[str, float]:
    """Differences of the means in standard errors, each error estimated from the instances of both samples."""
    scores = {}
    for name in first:
        a, b = first[name].astype(float), second[name].astype(float)
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        difference = a.mean() - b.mean()
        scores[name] = float(difference / error) if error > 0 else float(np.inf * difference if difference else 0)
    return scores
