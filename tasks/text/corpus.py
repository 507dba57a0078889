"""Documents out of files: plain text, JSON lines and Parquet."""

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs import ConfigError

STDLIB = "stdlib"
_NO_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
"""Folders beside the library's sources; installations differ in whether they have its tests."""


def find_files(given: Sequence[str]) -> list[Path]:
    """All files that paths, folders, globs and `stdlib` stand for, each once; hidden files of a folder are no part of it.

    Raises:
        ConfigError: where there is no such file.
    """
    found: dict[Path, None] = {}
    for text in given:
        files = _matching(text)
        if not files:
            raise ConfigError(f"files: no file is named or matched by {text!r}")
        found |= dict.fromkeys(sorted(files))
    return list(found)


def _matching(text: str) -> list[Path]:
    path = Path(text)
    if text == STDLIB:
        files = _below(Path(sysconfig.get_path("stdlib")), _NO_LIBRARY)
        # What `_sysconfigdata` holds is about the machine.
        return [file for file in files if file.suffix == ".py" and not file.name.startswith("_sysconfigdata")]
    if path.is_dir():
        return [file for file in _below(path, frozenset()) if file.is_file()]
    if path.is_file():
        return [path]
    return [Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file()]  # noqa: PTH207 - takes any path


def _below(folder: Path, without: frozenset[str]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def by_content(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """The files, each with its format and a hash of its content, in the order of the hashes: the same wherever they lie."""
    hashed = []
    for path in paths:
        try:
            with path.open("rb") as file:
                hashed.append((hashlib.file_digest(file, "sha256").hexdigest() + _suffix(path), path))
        except OSError as error:
            raise ConfigError(f"files: {path}: cannot be read: {error.strerror}") from None
    return sorted(hashed)


def documents(paths: Sequence[Path], *, field: str, max_documents: int | None, max_bytes: int | None) -> Iterator[bytes]:
    """Documents as UTF-8, as many as the limits admit: a plain file is one, so is a JSON line and a row of a Parquet table.

    Raises:
        ConfigError: naming the file, and line or row, for what cannot be read.
    """
    n_documents = n_bytes = 0
    for path in paths:
        for document in _read(path, field):
            n_documents, n_bytes = n_documents + 1, n_bytes + len(document)
            if max_documents is not None and n_documents > max_documents:
                return
            if max_bytes is not None and n_bytes > max_bytes:
                return
            yield document


def _read(path: Path, field: str) -> Iterator[bytes]:
    try:
        yield from _READERS.get(_suffix(path), _plain)(path, field)
    except ConfigError as error:
        raise ConfigError(f"files: {error}") from None


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix in _READERS else ""


def _plain(path: Path, _field: str) -> Iterator[bytes]:
    content = path.read_bytes()
    _decoded(content, f"{path}")
    yield content


def _json_lines(path: Path, field: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not (text := _decoded(line, where).strip()):
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{where}: no JSON: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise ConfigError(f"{where}: an object with a text {field!r} is expected; see the option 'field'")
            try:
                yield row[field].encode()
            except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
                raise ConfigError(f"{where}: no Unicode text: {error}") from None


def _parquet(path: Path, field: str) -> Iterator[bytes]:
    try:
        with pq.ParquetFile(path) as file:
            if problem := _no_text(file.schema_arrow, field):
                raise ConfigError(f"{path}: {problem}; see the option 'field'")
            number = 0
            for batch in file.iter_batches(columns=[field], batch_size=1024):
                for document in batch.column(0).cast(pa.large_binary()).to_pylist():
                    if document is None:
                        raise ConfigError(f"{path}, row {number}: {field!r} is null")
                    _decoded(document, f"{path}, row {number}")
                    yield document
                    number += 1
    except pa.ArrowException as error:
        raise ConfigError(f"{path}: cannot be read as Parquet: {error}") from None


def _no_text(columns: pa.Schema, field: str) -> str | None:
    """Why there is no column of text by that name, or None; text may be stored as a dictionary (pandas' category)."""
    kinds = [column.type for column in columns if column.name == field]
    if len(kinds) == 1 and _is_text(kinds[0]):
        return None
    known = f"no column of text {field!r}; columns: {', '.join(columns.names)}"
    if len(kinds) > 1:
        return f"{known}; {len(kinds)} of them are called {field!r}"
    return f"{known}; {field!r} is of the type {kinds[0]}" if kinds else known


def _is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):  # JSON, as text
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: no UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start}") from None


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
