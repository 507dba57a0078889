"""Samples: every window of a text by its number, instances drawn once, arrays in two splits."""

import json

import numpy as np
import pytest

from configs import ConfigError
from tasks import IGNORED, TASKS, draw
from tasks.samples.samples import ArraySamples, task_samples

DOCUMENTS = [
    bytes(32 + (7 * i + j) % 90 for j in range(n)).decode() for i, n in enumerate([1, 2, 6, 7, 8, 15, 16, 17, 40, 3] * 4)
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    documents = [f"{document} {i}" for i, document in enumerate(DOCUMENTS)] + [f"zeros\0 are\0no pads {i}" for i in range(9)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    options = {"validation_fraction": 0.3, "seq_len": 8, "folder": str(folder / "tokens")}
    return TASKS["text"](files=str(folder / "corpus.jsonl"), **options)


def samples_of(task, seed=0, n_train=None, n_validation=None):
    return task_samples(task, seed=seed, n_train=n_train, n_validation=n_validation)


def whole(samples, split):
    return samples.sequences(split, np.arange(samples.n_samples(split)))


def rows_of(tokens, targets):
    return sorted((tuple(a), tuple(b)) for a, b in zip(tokens.tolist(), targets.tolist(), strict=True))


def same(first, second):
    pairs = [(getattr(first, name), getattr(second, name)) for name in ("tokens", "sample_ids", "attention_mask", "targets")]
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_samples_of_a_text_are_its_windows(text, split):
    samples = samples_of(text)
    found = whole(samples, split)
    epoch = text.rows(split, 0, 0, text.n_rows(split))
    assert len(found.tokens) == text.n_rows(split) > 10
    assert rows_of(found.tokens, found.targets) == rows_of(epoch.inputs, epoch.targets)
    assert np.array_equal(found.attention_mask, found.targets != IGNORED)
    assert found.attention_mask.all(axis=1).any()
    assert not found.attention_mask.all()
    assert (found.tokens[~found.attention_mask] == 0).all()
    first = 0 if split == "train" else samples.n_samples("train")
    assert found.sample_ids.tolist() == list(range(first, first + len(found.tokens)))
    assert (samples.vocab_size, samples.seq_len) == (257, 8)


def test_neighbours_by_number_are_neighbours_in_a_document(text):
    found = whole(samples_of(text), "train")
    n_followed = 0
    for number in np.flatnonzero(found.tokens[1:, 0] != 256):
        assert found.targets[number, -1] == found.tokens[number + 1, 0]
        n_followed += 1
    assert n_followed > 10


@pytest.mark.parametrize("source", ["text", "drawn"])
def test_a_sample_is_the_same_in_any_company(text, source):
    task = text if source == "text" else TASKS["in_context_recall"](vocab_size=12, seq_len=16)
    samples = samples_of(task, n_train=20, n_validation=5)
    every = whole(samples, "train")
    numbers = np.array([7, 3, 3, 19, 0])
    found = samples.sequences("train", numbers)
    for name in ("tokens", "sample_ids", "targets"):
        assert np.array_equal(getattr(found, name), getattr(every, name)[numbers])
    assert same(samples_of(task, n_train=20, n_validation=5).sequences("train", numbers), found)
    ids = np.concatenate([every.sample_ids, whole(samples, "validation").sample_ids])
    assert ids.tolist() == list(range(25))


def test_more_of_a_text_keep_the_others_and_the_seed_says_which(text):
    few, more = samples_of(text, n_train=10, n_validation=4), samples_of(text, n_train=25)
    assert np.array_equal(whole(few, "train").tokens, whole(more, "train").tokens[:10])
    assert (few.n_samples("train"), few.n_samples("validation")) == (10, 4)
    assert more.n_samples("validation") == text.n_rows("validation")
    assert not np.array_equal(whole(few, "train").tokens, whole(samples_of(text, n_train=10, seed=1), "train").tokens)
    all_in_order = samples_of(text, n_train=text.n_rows("train"))
    assert rows_of(whole(all_in_order, "train").tokens, whole(all_in_order, "train").targets) == rows_of(
        whole(samples_of(text), "train").tokens, whole(samples_of(text), "train").targets
    )


def test_instances_of_a_task_are_those_of_seed_and_split():
    task = TASKS["selective_copying"](seq_len=24, n_tokens_to_copy=3)
    samples = samples_of(task, seed=3, n_train=12, n_validation=6)
    for split, n in (("train", 12), ("validation", 6)):
        found, drawn = whole(samples, split), draw(task, n, seed=3, split=split)
        assert np.array_equal(found.tokens, drawn.inputs)
        assert np.array_equal(found.targets, drawn.targets)
        assert found.attention_mask is None
    assert (samples.vocab_size, samples.seq_len) == (task.vocab_size, task.input_length)


def test_arrays_have_two_splits_or_one_for_both():
    tokens = np.arange(24).reshape(6, 4) % 7
    attention_mask = tokens != 5
    split = ArraySamples(tokens, vocab_size=7, attention_mask=attention_mask, n_validation=2)
    assert np.array_equal(whole(split, "train").tokens, tokens[:4])
    held_out = split.sequences("validation", np.array([1]))
    assert np.array_equal(held_out.tokens, tokens[5:])
    assert np.array_equal(held_out.attention_mask, attention_mask[5:])
    assert held_out.sample_ids.tolist() == [5]
    assert held_out.targets is None
    both = ArraySamples(tokens, vocab_size=7)
    assert same(whole(both, "train"), whole(both, "validation"))
    assert both.n_samples("train") == 6


def test_fingerprints_are_of_what_the_samples_are(text, tmp_path):
    copying = TASKS["selective_copying"](seq_len=24, n_tokens_to_copy=3)
    tokens = np.arange(24).reshape(6, 4) % 7
    makers = [
        lambda: samples_of(text),
        lambda: samples_of(text, n_train=10),
        lambda: samples_of(text, n_train=11),
        lambda: samples_of(text, n_train=10, seed=1),
        lambda: samples_of(text, n_validation=10),
        lambda: samples_of(type(text)(files=text.files, folder=text.folder, seq_len=8, validation_fraction=0.2)),
        lambda: samples_of(type(text)(files=text.files, folder=text.folder, seq_len=9, validation_fraction=0.3)),
        lambda: samples_of(copying, n_train=5, n_validation=5),
        lambda: samples_of(copying, n_train=5, n_validation=5, seed=1),
        lambda: ArraySamples(tokens, vocab_size=7),
        lambda: ArraySamples(tokens, vocab_size=8),
        lambda: ArraySamples(tokens, vocab_size=7, attention_mask=tokens < 6),
        lambda: ArraySamples(tokens, vocab_size=7, targets=(tokens < 6).astype(int)),
        lambda: ArraySamples(tokens, vocab_size=7, n_validation=1),
        lambda: ArraySamples(tokens.reshape(4, 6), vocab_size=7),
    ]
    found = [make().fingerprint() for make in makers]
    assert len(set(found)) == len(makers)
    assert [make().fingerprint() for make in makers] == found
    elsewhere = type(text)(files=text.files, folder=str(tmp_path), seq_len=8, validation_fraction=0.3)
    assert samples_of(elsewhere).fingerprint() == found[0]


def test_what_is_not_there_is_told(text):
    n_rows = text.n_rows("train")
    with pytest.raises(ConfigError, match=f"n_train: {n_rows + 1} of the {n_rows} windows of the train split"):
        samples_of(text, n_train=n_rows + 1)
    copying = TASKS["selective_copying"](seq_len=24, n_tokens_to_copy=3)
    with pytest.raises(ConfigError, match="n_validation: a number is needed"):
        samples_of(copying, n_train=3)
    with pytest.raises(ConfigError, match="n_train: a number is needed"):
        samples_of(copying, n_validation=3)
    with pytest.raises(ValueError, match="splits train and validation; got 'test'"):
        whole(samples_of(text), "test")
    tokens = np.arange(8).reshape(2, 4)
    with pytest.raises(ValueError, match="below vocab_size = 7; they are from 0 to 7"):
        ArraySamples(tokens, vocab_size=7)
    with pytest.raises(ValueError, match="must be below 2; got 2"):
        ArraySamples(tokens, vocab_size=8, n_validation=2)
    with pytest.raises(ValueError, match=r"attention_mask must be a bool array of the shape \[2, 4\]"):
        ArraySamples(tokens, vocab_size=8, attention_mask=tokens)
