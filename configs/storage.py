"""Writing a file whole or not at all: whoever reads finds what was there before or all that is new, also after a kill."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import uuid4


class Storage(Protocol):
    """Where finished files go: the local disk, or an object store that takes them over."""

    def publish(self, finished: Path, path: Path) -> None:
        """Have every reader of `path` find what the local file `finished` holds; that one is not needed afterwards."""


class LocalStorage:
    """A disk of this machine, or one that machines share."""

    def publish(self, finished: Path, path: Path) -> None:
        """Rename the file once its content is on the disk, so that a power cut leaves no empty one."""
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        finished.replace(path)


LOCAL = LocalStorage()
UNFINISHED = ".half-written"
"""How the names of files end that are being written; what a kill leaves of them may go once nobody else is writing there."""


@contextmanager
def whole_file(path: Path, storage: Storage = LOCAL) -> Iterator[Path]:
    """A name beside `path` to write to; when the block ends, the file is published as `path`, and on an exception removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}{UNFINISHED}")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)  # safetensors puts a file that only its owner may read in its place
        storage.publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
