"""Mixtures: rows and weights by share, the same batch on any number of ranks, every text window once an epoch."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from configs import ConfigError
from search.training.mixture import Mixture
from search.training.mixture_spec import MixtureSpec, allot
from tasks import IGNORED
from tests.search.ranks import on_ranks

CPU = torch.device("cpu")
RECALL = {"task": {"kind": "in_context_recall", "vocab_size": 32, "seq_len": 16}, "weight": 2}
COPYING = {"task": {"kind": "selective_copying", "seq_len": 24, "n_tokens_to_copy": 3}, "weight": 0.5}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i} " * (1 + i % 4)}) + "\n" for i in range(120)))
    options = {"files": str(path), "folder": str(folder / "tokens"), "validation_fraction": 0.2, "seq_len": 20}
    return {"task": {"kind": "text", **options}, "weight": 1}


@pytest.fixture
def spec(text):
    return MixtureSpec.model_validate({"tasks": {"recall": RECALL, "copying": COPYING, "text": text}, "batch_size": 14})


def mixture_of(spec, **options):
    return Mixture(spec, **{"seed": 0, "device": CPU, **options})


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("weights", "n_rows", "expected"),
    [
        ([1], 5, [5]),
        ([1, 1], 4, [2, 2]),
        ([1, 1], 5, [3, 2]),
        ([1, 1, 1], 32, [11, 11, 10]),
        ([2, 0.5, 1], 14, [8, 2, 4]),
        ([7, 2, 1], 7, [5, 1, 1]),
        ([1, 2, 3, 4], 9, [1, 2, 3, 3]),
    ],
)
def test_rows_go_to_the_largest_remainders(weights, n_rows, expected):
    shares = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    assert list(allot(shares, n_rows).values()) == expected


def test_allotted_rows_always_add_up():
    rng = np.random.default_rng(0)
    for _ in range(500):
        weights = rng.random(rng.integers(1, 9))
        shares = {str(i): weight / weights.sum() for i, weight in enumerate(weights.tolist())}
        n_rows = int(rng.integers(1, 100))
        rows = allot(shares, n_rows)
        assert sum(rows.values()) == n_rows
        assert all(abs(rows[name] - share * n_rows) < 1 + 1e-9 for name, share in shares.items())


def test_a_batch_has_the_rows_of_each_task_padded_to_one_length(spec):
    mixture = mixture_of(spec)
    assert (mixture.vocab_size, mixture.max_length) == (257, 24)
    assert mixture.shares == pytest.approx({"recall": 4 / 7, "copying": 1 / 7, "text": 2 / 7})
    inputs, targets, weights = mixture[3]
    assert inputs.dtype == targets.dtype == torch.int64
    assert weights.dtype == torch.float32
    assert inputs.shape == targets.shape == weights.shape == (14, 24)
    assert (inputs[:8, 15:] == 0).all()
    assert (targets[:8, 15:] == IGNORED).all()
    assert (targets[:8, :15] != IGNORED).all()
    assert (inputs[10:, 20:] == 0).all()
    assert ((weights > 0) == (targets != IGNORED)).all()


def test_the_loss_is_the_weighted_mean_of_the_means_of_the_tasks(spec):
    mixture = mixture_of(spec)
    inputs, targets, weights = mixture[5]
    logits = torch.randn(*inputs.shape, mixture.vocab_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    places, expected = {"recall": slice(0, 8), "copying": slice(8, 10), "text": slice(10, 14)}, 0.0
    for name, rows in places.items():
        mean = F.cross_entropy(logits[rows].flatten(0, 1), targets[rows].flatten(), ignore_index=IGNORED)
        expected += mixture.shares[name] * mean.item()
    assert (losses * weights.flatten()).sum().item() == pytest.approx(expected, rel=1e-5)
    assert weights.sum().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7, 14])
def test_the_ranks_together_have_the_batch_of_one_process(spec, n_ranks):
    whole = mixture_of(spec)[11]
    parts = [mixture_of(spec, rank=rank, n_ranks=n_ranks)[11] for rank in range(n_ranks)]
    for index, tensor in enumerate(whole):
        for rank, part in enumerate(parts):
            assert torch.equal(part[index], tensor[rank::n_ranks])
    sizes = [len(part.inputs) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(part.weights.sum() for part in parts).item() == pytest.approx(1, rel=1e-5)


def test_batches_are_a_function_of_seed_step_and_task(spec):
    mixture = mixture_of(spec)
    assert equal(mixture[9], mixture_of(spec)[9])
    mixture[0]
    assert equal(mixture[9], mixture_of(spec)[9])
    assert not equal(mixture[9], mixture[10])
    assert not equal(mixture[9], mixture_of(spec, seed=1)[9])
    assert not equal(mixture[9], mixture_of(spec, seed=1)[8])
    renamed = MixtureSpec(tasks={"other": spec.tasks["recall"]}, batch_size=8)
    same = MixtureSpec(tasks={"recall": spec.tasks["recall"]}, batch_size=8)
    assert torch.equal(mixture_of(same)[9].inputs, mixture[9].inputs[:8, :15])
    assert not torch.equal(mixture_of(renamed)[9].inputs, mixture[9].inputs[:8, :15])


def text_rows(batch):
    return [tuple(row) for row in torch.cat((batch.inputs, batch.targets), dim=1).tolist()]


def test_ranks_go_through_a_text_without_overlap_and_resume_anywhere(text):
    spec = MixtureSpec(tasks={"text": text}, batch_size=6)
    task = spec.tasks["text"].instance()
    n_rows = task.n_rows("train")
    n_steps = 6 * n_rows // 6  # six epochs, each of which ends within a step
    ranks = [mixture_of(spec, rank=rank, n_ranks=2) for rank in range(2)]
    seen = [row for step in range(n_steps) for pair in zip(*(text_rows(r[step]) for r in ranks), strict=True) for row in pair]
    examples = task.rows("train", 0, 0, n_rows)
    epoch = Counter(tuple(row) for row in np.concatenate([examples.inputs, examples.targets], axis=1).tolist())
    assert [Counter(seen[number * n_rows : (number + 1) * n_rows]) for number in range(6)] == [epoch] * 6
    middle = n_steps // 2 + 1
    resumed = [text_rows(mixture_of(spec)[step]) for step in range(middle, n_steps)]
    assert [row for rows in resumed for row in rows] == seen[6 * middle :]


def seen_alone(raw):
    mixture = Mixture(MixtureSpec.model_validate(raw), seed=0, device=CPU, rank=1, n_ranks=2)
    return [[tensor.tolist() for tensor in mixture[step]] for step in (0, 7)], mixture.fingerprint(mixture.evaluation(2, 4))


@pytest.mark.slow
def test_another_process_sees_the_same_batches(spec, tmp_path):
    ((batches, fingerprint),) = on_ranks(seen_alone, 1, tmp_path, spec.to_dict())
    mixture = mixture_of(spec)
    assert batches == [[tensor[1::2].tolist() for tensor in mixture[step]] for step in (0, 7)]
    assert fingerprint == mixture.fingerprint(mixture.evaluation(2, 4))


def test_evaluation_is_fixed_at_the_length_of_each_task_and_apart_from_training(spec):
    mixture = mixture_of(spec)
    batches = mixture.evaluation(3, 5)
    assert {name: [tuple(inputs.shape) for inputs, _ in pairs] for name, pairs in batches.items()} == {
        "recall": [(5, 15)] * 3,
        "copying": [(5, 24)] * 3,
        "text": [(5, 20)] * 3,
    }
    for name, pairs in mixture_of(spec, rank=1, n_ranks=2).evaluation(3, 5).items():
        assert all(equal(first, second) for first, second in zip(pairs, batches[name], strict=True))
    for name, pairs in mixture.evaluation(3, 5, "test").items():
        assert not any(equal(first, second) for first, second in zip(pairs, batches[name], strict=True))
    windows = [tuple(row) for inputs, _ in batches["text"] for row in inputs.tolist()]
    trained = {tuple(row[:20].tolist()) for step in range(80) for row in mixture[step].inputs[10:]}
    starts = {window for window in windows if window[0] == 256}
    assert starts
    assert not starts & trained


def test_no_window_is_scored_twice(spec):
    mixture = mixture_of(spec)
    n_rows = mixture.tasks["text"].n_rows("validation")
    (pair,) = mixture.evaluation(1, n_rows)["text"]
    assert len(pair[0]) == n_rows
    with pytest.raises(ConfigError, match=f"1 batches of {n_rows + 1} need {n_rows + 1} windows of 'text', but its validation"):
        mixture.evaluation(1, n_rows + 1)


def test_the_fingerprint_is_that_of_evaluation_data_and_shares(spec):
    mixture = mixture_of(spec)
    batches = mixture.evaluation(2, 4)
    fingerprint = mixture.fingerprint(batches)
    assert mixture_of(spec).fingerprint(mixture_of(spec).evaluation(2, 4)) == fingerprint
    others = [mixture.evaluation(2, 4, "test"), mixture.evaluation(1, 8), mixture.evaluation(3, 4)]
    others.append(mixture_of(spec, seed=1).evaluation(2, 4))
    heavier = mixture_of(MixtureSpec(tasks={**spec.tasks, "recall": {**RECALL, "weight": 3}}, batch_size=14))
    fingerprints = {fingerprint, heavier.fingerprint(batches), *map(mixture.fingerprint, others)}
    assert len(fingerprints) == 6
    batches["text"][1][1][0, 0] += 1
    assert mixture.fingerprint(batches) not in fingerprints


BROKEN = [
    ({"tasks": {}}, "tasks"),
    ({"tasks": {"a": {"task": None}}}, "a task is expected"),
    ({"tasks": {"a": {"task": {"kind": "compression"}}}}, "'compression' needs the head 'autoencoder'"),
    ({"tasks": {"a": {"task": {"kind": "in_context_recall", "seq_len": 7}}}}, "seq_len must be even"),
    ({"tasks": {"a": RECALL, "b": {**RECALL, "weight": 0.01}}}, "8 rows leave none for b"),
    ({"tasks": {"a": {**RECALL, "weight": 0}}}, "greater than 0"),
]


@pytest.mark.parametrize(("keys", "message"), BROKEN)
def test_what_cannot_be_mixed_is_told(keys, message):
    with pytest.raises(ValidationError, match=message):
        MixtureSpec.model_validate({"batch_size": 8, **keys})


def test_more_workers_than_rows_is_an_error(spec):
    with pytest.raises(ConfigError, match="batch_size 14 over 15 workers leaves some without a row; give at least 15"):
        mixture_of(spec, n_ranks=15)


def test_what_is_wrong_with_files_comes_to_light_before_the_first_step():
    spec = MixtureSpec(tasks={"text": {"task": {"kind": "text", "files": "nowhere.txt"}}}, batch_size=2)
    with pytest.raises(ConfigError, match=r"nowhere\.txt"):
        mixture_of(spec)
