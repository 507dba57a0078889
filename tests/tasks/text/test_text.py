"""Windows over documents: against a loop over tokens, over shards, epochs and ranks."""

from collections import Counter

import numpy as np
import pytest

from tasks import IGNORED, TASKS
from tasks.permutation import N_KEPT, permuted, permuted_run

SEPARATOR = 256
DOCUMENTS = [bytes(32 + (7 * i + j) % 90 for j in range(n)).decode() for i, n in enumerate([1, 2, 6, 7, 8, 15, 16, 17, 40, 3])]


@pytest.fixture
def text(tmp_path):
    """Makes the task on documents, each a file of its own."""

    def make(documents=DOCUMENTS, **options):
        for number, document in enumerate(documents):
            (tmp_path / "files").mkdir(exist_ok=True)
            (tmp_path / "files" / f"{number}.txt").write_text(document)
        options = {"validation_fraction": 0.0, "seq_len": 8, **options}
        return TASKS["text"](files=str(tmp_path / "files"), folder=str(tmp_path / "tokens"), **options)

    return make


def windows_of(document: str, seq_len: int) -> list[tuple[list[int], list[int]]]:
    """One token at a time."""
    row = [SEPARATOR, *document.encode(), SEPARATOR]
    windows = []
    for position in range(len(row) - 1):
        if position % seq_len == 0:
            windows.append(([], []))
        windows[-1][0].append(row[position])
        windows[-1][1].append(row[position + 1])
    n_missing = seq_len - len(windows[-1][0])
    windows[-1][0].extend([0] * n_missing)
    windows[-1][1].extend([IGNORED] * n_missing)
    return windows


def rows_of(examples):
    return [(tuple(a), tuple(b)) for a, b in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True)]


def epoch(task, split="train", seed=0, number=0):
    n_rows = task.n_rows(split)
    return rows_of(task.rows(split, seed, number * n_rows, n_rows))


@pytest.mark.parametrize("seq_len", [1, 2, 7, 8, 100])
@pytest.mark.parametrize("shard_tokens", [1, 30, 10**6])
def test_an_epoch_is_what_a_loop_over_the_documents_gives(text, monkeypatch, seq_len, shard_tokens):
    monkeypatch.setattr("tasks.text.shards.SHARD_TOKENS", shard_tokens)
    expected = Counter((tuple(a), tuple(b)) for document in DOCUMENTS for a, b in windows_of(document, seq_len))
    assert Counter(epoch(text(seq_len=seq_len))) == expected


def test_every_token_is_asked_once_and_none_across_documents(text):
    documents = [letter * n for letter, n in zip("abcdefgh", [1, 5, 8, 9, 20, 31, 32, 33], strict=True)]
    asked = Counter()
    for inputs, targets in epoch(text(documents)):
        letters = {token for token in (*inputs, *targets) if token not in (SEPARATOR, IGNORED, 0)}
        assert len(letters) <= 1
        asked.update(target for target in targets if target != IGNORED)
    assert asked == Counter(document.encode()[0] for document in documents for _ in document) + Counter({SEPARATOR: 8})


def test_empty_documents_are_left_out(text):
    assert Counter(epoch(text([*DOCUMENTS, "", ""]))) == Counter(epoch(text(DOCUMENTS)))


def test_samples_are_windows_of_the_split(text, rng):
    task = text([f"document {i} " * 3 for i in range(60)], validation_fraction=0.3)
    for split in ("train", "validation", "test"):
        drawn = rows_of(task.sample(rng, 200, split))
        assert set(drawn) <= set(epoch(task, split))
        assert len(set(drawn)) > min(50, task.n_rows(split) // 2)


def test_an_epoch_can_be_gone_on_with_anywhere_and_in_any_portions(text):
    task = text()
    n_rows = task.n_rows("train")
    whole = rows_of(task.rows("train", 5, 0, 3 * n_rows))
    assert whole == epoch(task, seed=5) + epoch(task, seed=5, number=1) + epoch(task, seed=5, number=2)
    for first in range(0, 3 * n_rows - 5, 3):
        assert rows_of(task.rows("train", 5, first, 5)) == whole[first : first + 5]
    assert len({tuple(epoch(task, seed=seed, number=number)) for seed in range(5) for number in range(4)}) == 20


@pytest.mark.parametrize("n", [*range(1, 40), 64, 65, 1000, 4097])
def test_an_order_has_every_number_once(n):
    orders = [permuted(np.arange(n), n, seed, 0) for seed in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
    if n >= 15:
        assert len({tuple(order) for order in orders}) == 3
        assert not np.array_equal(orders[0], permuted(np.arange(n), n, 0, 1))


@pytest.mark.parametrize("n", [5, 16, 37])
def test_over_many_keys_every_number_is_in_every_place_equally_often(n):
    n_keys = 1000
    counts = np.zeros((n, n))
    for key in range(n_keys):
        counts[np.arange(n), permuted(np.arange(n), n, "chance", key)] += 1
    expected, freedom = n_keys / n, (n - 1) ** 2
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours():
    order = permuted(np.arange(10_000), 10_000, 0, 0)
    assert (np.abs(np.diff(order)) < 10).mean() < 0.005


def test_a_position_costs_the_same_in_an_epoch_of_any_length():
    """Nothing of the length of the epoch is held: this would be 8 EB."""
    far = np.array([0, 2**60 - 1, 123456789])
    assert len(set(permuted(far, 2**60, 0, 0).tolist())) == 3


@pytest.mark.parametrize(
    ("first", "n_positions"), [(0, 1), (0, 9), (N_KEPT - 1, 1), (N_KEPT - 3, 7), (5, 2 * N_KEPT), (9990, 10)]
)
def test_a_run_of_positions_is_permuted_as_each_is(first, n_positions):
    for key in (("train", 3, 0), ("train", 3, 1), ("validation", 3, 0)):
        expected = permuted(np.arange(first, first + n_positions), 10_000, *key)
        assert np.array_equal(permuted_run(first, n_positions, 10_000, *key), expected)
