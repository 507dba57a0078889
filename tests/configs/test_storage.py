"""Files that are written whole: nothing of them before the end, nothing after a failure, and everybody may read them."""

import os
import stat
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from configs import ConfigError
from configs.storage import UNFINISHED, open_without_links, refuse_links, whole_file


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
        assert unfinished.parent.parent == path.parent  # a rename does not go from one disk to another
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


def test_the_content_is_on_the_disk_before_the_file_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.txt", []

    def sync(number):
        status = os.fstat(number)
        seen.append(("folder" if stat.S_ISDIR(status.st_mode) else status.st_size, path.exists()))

    monkeypatch.setattr("os.fsync", sync)
    write(path, "12345")
    assert seen == [(5, False), ("folder", True)]


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


def test_nobody_can_have_laid_a_link_where_a_file_is_about_to_be_written(tmp_path, monkeypatch):
    """The temporary folder is made, never taken: under a name that is taken, even by a link, nothing is written."""
    target = tmp_path / "target"
    target.write_text("theirs")
    monkeypatch.setattr("configs.storage.uuid4", lambda: SimpleNamespace(hex="known"))
    (tmp_path / f".file.txt.known{UNFINISHED}").symlink_to(target)
    with pytest.raises(FileExistsError):
        write(tmp_path / "file.txt", "ours")
    assert target.read_text() == "theirs"


def test_a_link_in_the_place_of_a_file_is_replaced_and_what_it_led_to_stays(tmp_path):
    target, path = tmp_path / "target", tmp_path / "file.txt"
    target.write_text("theirs")
    path.symlink_to(target)
    write(path, "ours")
    assert (target.read_text(), path.read_text(), path.is_symlink()) == ("theirs", "ours", False)


@pytest.mark.parametrize("adds", [False, True])
def test_locks_and_logs_are_not_opened_through_links(tmp_path, adds):
    target, path = tmp_path / "target", tmp_path / "log"
    target.write_text("theirs")
    path.symlink_to(target)
    with pytest.raises(ConfigError, match=f"{path}: is a link; .*: remove it"):
        open_without_links(path, adds=adds)
    assert target.read_text() == "theirs"


def test_a_folder_with_a_link_at_any_depth_is_refused_and_one_that_is_reached_through_a_link_is_not(tmp_path):
    (tmp_path / "run/deep").mkdir(parents=True)
    (tmp_path / "way").symlink_to(tmp_path / "run")
    refuse_links(tmp_path / "way")
    (tmp_path / "run/deep/caches").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ConfigError, match=f"deep/caches: is a link to {tmp_path / 'elsewhere'}, .*; remove the link, or give another"
    ):
        refuse_links(tmp_path / "way")


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
