"""Files that are written whole: nothing of them before the end, nothing after a failure, and everybody may read them."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from configs.storage import whole_file


def write(path, text, *more, fails=False):
    with whole_file(path, *more) as unfinished:
        unfinished.write_text(text)
        if fails:
            raise OSError("no space left on device")


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write(path, "old")
    with whole_file(path) as unfinished:
        unfinished.write_text("ne")
        assert path.read_text() == "old"
        assert unfinished.parent == path.parent  # a rename does not go from one disk to another
        unfinished.write_text("new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "old"])
def test_an_exception_leaves_what_was_there_and_is_the_writers_own(tmp_path, content):
    path = tmp_path / "file.txt"
    if content is not None:
        write(path, content)
    with pytest.raises(OSError, match="no space left on device"):
        write(path, "half", fails=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({} if content is None else {path.name: content})


def test_the_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.txt", []

    def sync(number):
        seen.append((os.fstat(number).st_size, path.exists()))

    monkeypatch.setattr("os.fsync", sync)
    write(path, "12345")
    assert seen == [(5, False)]


def test_a_sync_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="input/output error"):
        write(tmp_path / "file.txt", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_umask_says_who_may_read_whoever_writes(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write(tmp_path / "text", "text")
        with whole_file(tmp_path / "weights") as unfinished:
            save_file({"x": torch.ones(3)}, unfinished)  # by itself it makes files that only their owner may read
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_two_that_write_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the one that ended last
    assert list(tmp_path.iterdir()) == [path]


def test_files_go_where_the_storage_puts_them(tmp_path):
    class Store:
        def __init__(self):
            self.contents = {}

        def publish(self, finished, path):
            self.contents[path.name] = finished.read_text()

    store = Store()
    write(tmp_path / "file.txt", "text", store)
    assert store.contents == {"file.txt": "text"}
    with pytest.raises(OSError, match="no space left on device"):
        write(tmp_path / "other.txt", "half", store, fails=True)
    assert store.contents == {"file.txt": "text"}
    assert list(tmp_path.iterdir()) == []
