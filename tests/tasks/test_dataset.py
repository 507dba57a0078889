"""Data sets on disk: what is read is what was drawn; what is damaged is drawn again."""

import re
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tasks import TASKS, Task, cached, draw

ARGUMENTS = {"n_examples": 50, "seed": 3, "split": "train"}


@pytest.fixture
def task():
    return TASKS["in_context_recall"]()


def equal(first, second):
    return np.array_equal(first.inputs, second.inputs) and np.array_equal(first.targets, second.targets)


def only_file(folder):
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("n_examples", [0, 1, 50])
def test_a_kept_data_set_is_the_drawn_one(kind, n_examples, tmp_path):
    task = TASKS[kind]()
    drawn = draw(task, n_examples, seed=3, split="test")
    for _ in range(2):
        kept = cached(task, n_examples, seed=3, split="test", folder=tmp_path / "new" / "folder")
        assert equal(kept, drawn)
        assert kept.inputs.dtype == kept.targets.dtype == np.int64


def test_reading_copies_nothing_and_draws_nothing(task, tmp_path, monkeypatch):
    drawn = cached(task, **ARGUMENTS, folder=tmp_path)
    monkeypatch.setattr(type(task), "sample", lambda *_: pytest.fail("drawn again"))
    allocated = pa.total_allocated_bytes()
    kept = cached(task, **ARGUMENTS, folder=tmp_path)
    assert equal(kept, drawn)
    assert pa.total_allocated_bytes() == allocated
    assert not kept.inputs.flags.owndata
    assert not kept.inputs.flags.writeable


def test_everything_the_content_depends_on_makes_another_file(task, tmp_path, monkeypatch):
    cached(task, **ARGUMENTS, folder=tmp_path)
    cached(replace(task, vocab_size=32), **ARGUMENTS, folder=tmp_path)
    cached(replace(task, multi_query=False), **ARGUMENTS, folder=tmp_path)
    cached(TASKS["noisy_in_context_recall"](vocab_size=16, noise_vocab_size=0, frac_noise=0.0), **ARGUMENTS, folder=tmp_path)
    for change in ({"n_examples": 51}, {"seed": 4}, {"split": "test"}, {"split": "validation"}):
        cached(task, **{**ARGUMENTS, **change}, folder=tmp_path)
    monkeypatch.setattr("tasks.dataset.FORMAT", 1000)
    cached(task, **ARGUMENTS, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 9


def test_numbers_of_numpy_name_the_same_file(task, tmp_path):
    cached(task, **ARGUMENTS, folder=tmp_path)
    same = replace(task, vocab_size=np.int64(16))
    cached(same, np.int64(50), seed=np.int32(3), split="train", folder=tmp_path)
    assert only_file(tmp_path).name.startswith("in_context_recall-train-")


def test_splits_and_seeds_have_streams_of_their_own(task):
    sets = [draw(task, 20, seed=seed, split=split).inputs for seed in (0, 1) for split in ("train", "validation", "test")]
    assert len({inputs.tobytes() for inputs in sets}) == 6


@pytest.mark.parametrize(("change", "message"), [
    ({"split": "eval"}, "unknown split 'eval'"),
    ({"seed": -1}, "seed must be an integer, at least 0; got -1"),
    ({"n_examples": -1}, "n_examples must be an integer, at least 0; got -1"),
])  # fmt: skip
def test_bad_arguments_are_told_and_leave_nothing(task, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(task, **{**ARGUMENTS, **change})
    with pytest.raises(ValueError, match=message):
        cached(task, **{**ARGUMENTS, **change}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(task, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        cached(task, **ARGUMENTS, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_told_and_drawn_again(task, tmp_path, share, caplog):
    drawn = cached(task, **ARGUMENTS, folder=tmp_path)
    path = only_file(tmp_path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: int(share * len(content))])
    assert equal(cached(task, **ARGUMENTS, folder=tmp_path), drawn)
    (told,) = caplog.messages
    assert re.fullmatch(f"{path}: damaged: .*; its instances are drawn again", told, re.DOTALL)
    assert path.read_bytes() == content


def test_one_wrong_bit_is_told_and_drawn_again(task, tmp_path, rng, caplog):
    drawn = cached(task, **ARGUMENTS, folder=tmp_path)
    path = only_file(tmp_path)
    content = path.read_bytes()
    for place in rng.integers(len(content), size=40):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.unlink()
        path.write_bytes(damaged)
        assert equal(cached(task, **ARGUMENTS, folder=tmp_path), drawn)
    assert len(caplog.messages) > 30  # bits between the parts of a file do no harm


@pytest.mark.parametrize("kind", [pa.float64(), pa.uint64(), pa.duration("s")], ids=str)
def test_columns_of_another_type_are_told_and_drawn_again(task, tmp_path, kind, caplog):
    """One bit of a header makes them: their bytes are those that were written, and so is the checksum."""
    drawn = cached(task, **ARGUMENTS, folder=tmp_path)
    path = only_file(tmp_path)
    with pa.memory_map(str(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    columns = [pa.FixedSizeListArray.from_arrays(each.flatten().view(kind), each.type.list_size) for each in batch.columns]
    other = pa.record_batch(columns, names=batch.schema.names).replace_schema_metadata(batch.schema.metadata)
    path.unlink()
    with pa.ipc.new_file(str(path), other.schema) as writer:
        writer.write_batch(other)
    assert equal(cached(task, **ARGUMENTS, folder=tmp_path), drawn)
    (told,) = caplog.messages
    assert re.search(r"damaged: a column is \S+, not int64; its instances are drawn again", told)


def test_a_file_with_the_name_of_another_is_told_and_drawn_again(task, tmp_path, caplog):
    drawn = cached(task, **ARGUMENTS, folder=tmp_path)
    right = only_file(tmp_path)
    cached(task, **{**ARGUMENTS, "seed": 4}, folder=tmp_path)
    (wrong,) = set(tmp_path.iterdir()) - {right}
    wrong.replace(right)
    assert equal(cached(task, **ARGUMENTS, folder=tmp_path), drawn)
    (told,) = caplog.messages
    assert re.search(r'should hold .*"seed": 3.*but holds .*"seed": 4.*; its instances are drawn again', told)


def test_many_writers_leave_one_whole_file(task, tmp_path, monkeypatch):
    """All writers have drawn before any of them writes."""
    barrier = threading.Barrier(4)
    sample = type(task).sample

    def sample_together(self: Task, *arguments: object):
        barrier.wait(timeout=240)
        return sample(self, *arguments)

    monkeypatch.setattr(type(task), "sample", sample_together)
    read = []
    threads = [threading.Thread(target=lambda: read.append(cached(task, **ARGUMENTS, folder=tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert len(read) == 4
    assert all(equal(examples, draw(task, **ARGUMENTS)) for examples in read)
    assert only_file(tmp_path).suffix == ".arrow"
