"""The fast samplers draw from the distribution of the reference, whose 2,000 instances per split the oracle repeats."""

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tasks import TASKS
from tests.tasks.synthetic.measures import deviations, measure
from tests.tasks.synthetic.oracle import generate

DATA = Path(__file__).parents[2] / "data" / "mad"
STATISTICS = json.loads((DATA / "stats_2000.json").read_text())
MAX_DEVIATION = 4
SPLITS = ("train", "test")
MAD = [name.replace("-", "_") for name in STATISTICS]

each_kind = pytest.mark.parametrize("kind", MAD)
each_split = pytest.mark.parametrize("split", SPLITS)


@cache
def reference(kind):
    return generate(TASKS[kind](), 2000)


@cache
def reference_measures(kind, split):
    return measure(kind, TASKS[kind](), *reference(kind)[split])


@each_kind
@each_split
def test_the_oracle_repeats_the_stored_samples(kind, split):
    stored = np.load(DATA / f"{kind.replace('_', '-')}_{split}.npz")
    inputs, targets = generate(TASKS[kind](), len(stored["inputs"]))[split]
    np.testing.assert_array_equal(inputs, stored["inputs"])
    np.testing.assert_array_equal(targets, stored["targets"])


@each_kind
@each_split
def test_the_oracle_repeats_the_instances_behind_the_statistics(kind, split):
    statistics = STATISTICS[kind.replace("_", "-")][split]
    inputs, targets = reference(kind)[split]
    assert hashlib.sha256(inputs.tobytes()).hexdigest() == statistics["sha256_inputs"]
    assert hashlib.sha256(targets.tobytes()).hexdigest() == statistics["sha256_targets"]


@each_kind
@each_split
def test_measures_mean_what_the_statistics_mean(kind, split):
    """Published means, rates and counts of the reference, recomputed by the measures that judge our samplers."""
    measures = reference_measures(kind, split)
    n_compared = 0
    for name, published in STATISTICS[kind.replace("_", "-")][split].items():
        if isinstance(published, dict) and "mean" in published and name in measures:
            assert measures[name].mean() == pytest.approx(published["mean"]), name
        elif isinstance(published, list) and f"{name} 0" in measures:
            means = [measures[f"{name} {i}"].mean() for i in range(len(published)) if f"{name} {i}" in measures]
            assert means == pytest.approx(published[: len(means)], abs=1e-6), name
        elif name in ("final_query_never_shown_before", "distinct_keys_per_instance", "token_right_before_copy_is_data"):
            total = measures[name].sum() if name.startswith("final") else measures[name].mean()
            assert total == pytest.approx(published), name
        else:
            continue
        n_compared += 1
    assert n_compared >= 3


@each_kind
@each_split
def test_sampler_agrees_with_the_reference(kind, split):
    task = TASKS[kind]()
    examples = task.sample(np.random.default_rng(2024), 2000, split)
    scores = deviations(measure(kind, task, examples.inputs, examples.targets), reference_measures(kind, split))
    assert {name: score for name, score in scores.items() if abs(score) > MAX_DEVIATION} == {}


TINY = [
    ("in_context_recall", {"vocab_size": 4, "seq_len": 6}),
    ("in_context_recall", {"vocab_size": 6, "seq_len": 6, "multi_query": False}),
    ("noisy_in_context_recall", {"vocab_size": 5, "seq_len": 6, "noise_vocab_size": 1, "frac_noise": 0.5}),
    ("noisy_in_context_recall", {"vocab_size": 6, "seq_len": 8, "noise_vocab_size": 1, "frac_noise": 0.3, "multi_query": False}),
    ("fuzzy_in_context_recall", {"vocab_size": 5, "seq_len": 9, "k_motif_size": 2, "v_motif_size": 1}),
    ("fuzzy_in_context_recall", {"vocab_size": 5, "seq_len": 10, "k_motif_size": 1, "v_motif_size": 2}),
    ("fuzzy_in_context_recall", {"vocab_size": 6, "seq_len": 9, "k_motif_size": 1, "v_motif_size": 1, "multi_query": False}),
    (
        "fuzzy_in_context_recall",
        {"vocab_size": 6, "seq_len": 8, "k_motif_size": 1, "v_motif_size": 2, "noise_vocab_size": 1, "frac_noise": 0.3},
    ),
    ("memorization", {"vocab_size": 8, "seq_len": 6}),
    ("compression", {"vocab_size": 4, "seq_len": 5}),
    ("selective_copying", {"vocab_size": 4, "seq_len": 10, "n_tokens_to_copy": 3}),
]


def counts(inputs, targets):
    return Counter(row.tobytes() for row in np.concatenate([inputs, targets], axis=1))


@pytest.mark.parametrize(("kind", "options"), TINY)
def test_whole_instances_are_as_frequent_as_in_the_oracle(kind, options):
    """Tiny settings have few instances: inputs and targets together, a chi-square test of two samples of one size."""
    n_examples = 3000
    task = TASKS[kind](**options)
    expected = generate(task, n_examples)
    for split in SPLITS:
        examples = task.sample(np.random.default_rng(7), n_examples, split)
        ours, theirs = counts(examples.inputs, examples.targets), counts(*expected[split])
        statistic = sum((ours[row] - theirs[row]) ** 2 / (ours[row] + theirs[row]) for row in ours | theirs)
        freedom = len(ours | theirs) - 1
        assert freedom < n_examples / 4
        assert abs(statistic - freedom) < MAX_DEVIATION * np.sqrt(2 * freedom)
