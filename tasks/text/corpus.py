"""The files of a corpus: found, put in the order of their content, and read as far as the limits admit."""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import ConfigError
from tasks.text.formats import ENGLISH, TEXT_FORMATS, read_documents

STDLIB = "stdlib"
_NO_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
"""Folders beside the library's sources; installations differ in whether they have its tests."""


@dataclass(frozen=True, order=True)
class TextFile:
    """A file, and the format that it is read by: a suffix, `english`, or empty for plain text."""

    path: Path
    format: str

    @classmethod
    def by_suffix(cls, path: Path) -> "TextFile":
        """In the format that its name tells."""
        suffix = path.suffix.lower()
        return cls(path, suffix if suffix in TEXT_FORMATS else "")


def find_files(given: Sequence[str]) -> list[TextFile]:
    """All files that paths, folders, globs, `stdlib` and `english` stand for, each once; hidden files of a folder are no part.

    Raises:
        ConfigError: where there is no such file.
    """
    found: dict[TextFile, None] = {}
    for text in given:
        if text == ENGLISH:
            files = [TextFile(path, ENGLISH) for path in _library()]
        else:
            files = [TextFile.by_suffix(path) for path in _matching(text)]
        if not files:
            raise ConfigError(f"files: no file is named or matched by {text!r}")
        found |= dict.fromkeys(sorted(files))
    return list(found)


def _library() -> list[Path]:
    files = _below(Path(sysconfig.get_path("stdlib")), _NO_LIBRARY)
    # What `_sysconfigdata` holds is about the machine.
    return [file for file in files if file.suffix == ".py" and not file.name.startswith("_sysconfigdata")]


def _matching(text: str) -> list[Path]:
    path = Path(text)
    if text == STDLIB:
        return _library()
    if path.is_dir():
        return [file for file in _below(path, frozenset()) if file.is_file()]
    if path.is_file():
        return [path]
    return [Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file()]  # noqa: PTH207 - takes any path


def _below(folder: Path, without: frozenset[str]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def by_content(files: Sequence[TextFile]) -> list[tuple[str, TextFile]]:
    """The files, each with a hash of its content and its format, in the order of these: the same wherever they lie."""
    hashed = []
    for each in files:
        try:
            with each.path.open("rb") as file:
                hashed.append((hashlib.file_digest(file, "sha256").hexdigest() + each.format, each))
        except OSError as error:
            raise ConfigError(f"files: {each.path}: cannot be read: {error.strerror}") from None
    return sorted(hashed)


def documents(files: Sequence[TextFile], *, field: str, max_documents: int | None, max_bytes: int | None) -> Iterator[bytes]:
    """Documents as UTF-8, as many as the limits admit: a plain file is one, so is a JSON line and a row of a Parquet table.

    What `english` makes of a source is told in `tasks.text.english`.

    Raises:
        ConfigError: naming the file, and line or row, for what cannot be read.
    """
    n_documents = n_bytes = 0
    for file in files:
        for document in read_documents(file.path, file.format, field):
            n_documents, n_bytes = n_documents + 1, n_bytes + len(document)
            if max_documents is not None and n_documents > max_documents:
                return
            if max_bytes is not None and n_bytes > max_bytes:
                return
            yield document
