"""Writing a file whole or not at all: whoever reads finds what was there before or all that is new, also after a kill.

Nothing that lies behind a link inside a folder of ours is touched: a file is made under a name that nobody has, locks and logs
are opened without following links, and a folder that holds links is refused before anything is written (`refuse_links`).
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol
from uuid import uuid4

from configs.errors import ConfigError


class Storage(Protocol):
    """Where finished files go: the local disk, or an object store that takes them over."""

    def publish(self, finished: Path, path: Path) -> None:
        """Have every reader of `path` find what the local file `finished` holds; that one is not needed afterwards."""


class LocalStorage:
    """A disk of this machine, or one that machines share."""

    def publish(self, finished: Path, path: Path) -> None:
        """Rename the file once its content is on the disk, and have the disk know its name: a power cut takes neither."""
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        finished.replace(path)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


LOCAL = LocalStorage()
UNFINISHED = ".half-written"
"""How the names of folders end in which files are being written; what a kill leaves may go once nobody else is writing there."""


@contextmanager
def whole_file(path: Path, storage: Storage = LOCAL) -> Iterator[Path]:
    """A name to write to on the disk of `path`: the file is published as `path` when the block ends, removed on an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{uuid4().hex}{UNFINISHED}")
    folder.mkdir()
    unfinished = folder / "file"  # writers have temporary files of their own beside it, as safetensors does
    try:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)  # safetensors puts a file that only its owner may read in its place
        storage.publish(unfinished, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_out_of_room(error: OSError) -> bool:
    """Whether a disk (or what somebody may write there) is full: no fault of the work, which goes on when there is room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def remove_half_written(folder: Path) -> None:
    """Remove what killed writes left in a folder, at any depth; nobody else may be writing there."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            if name.startswith(".") and name.endswith(UNFINISHED):
                shutil.rmtree(Path(place, name), ignore_errors=True)


def refuse_links(folder: Path) -> None:
    """ConfigError if a link lies in a folder of ours, at any depth: what is behind it is not ours to write to.

    The folder itself may be reached through one.
    """
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            if path.is_symlink():
                text = f"is a link to {path.readlink()}, and what lies behind a link is never written to or removed"
                raise ConfigError(f"{path}: {text}; remove the link, or give another folder")


def open_without_links(path: Path, *, adds: bool = False) -> IO[str]:
    """A file to lock, or with `adds` to append text to, made if it is not there; ConfigError if its name is a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if adds else 0)
    try:
        number = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ConfigError(f"{path}: is a link; what lies behind a link is never written to: remove it") from None
    return os.fdopen(number, "a" if adds else "w", encoding="utf-8")  # a descriptor is not truncated


@contextmanager
def held_lock(path: Path, *, waits: bool) -> Iterator[None]:
    """Hold a lock file, which stays; BlockingIOError if another process has it and this one does not wait for it."""
    with open_without_links(path) as held:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
