"""Documents out of one file: plain text, JSON lines, Parquet, and the prose in a source."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs import ConfigError
from tasks.text.english import prose

ENGLISH = "english"


def read_documents(path: Path, kind: str, field: str) -> Iterator[bytes]:
    """All documents of a file as UTF-8, read in one of the `TEXT_FORMATS`.

    Raises:
        ConfigError: naming the file, and line or row, for what cannot be read.
    """
    try:
        yield from TEXT_FORMATS[kind](path, field)
    except ConfigError as error:
        raise ConfigError(f"files: {error}") from None


def _plain(path: Path, _field: str) -> Iterator[bytes]:
    content = path.read_bytes()
    _decoded(content, f"{path}")
    yield content


def _english(path: Path, _field: str) -> Iterator[bytes]:
    yield from prose(path)


def _json_lines(path: Path, field: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not (text := _decoded(line, where).strip()):
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits is no JSONDecodeError
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


TEXT_FORMATS = {"": _plain, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet, ENGLISH: _english}
"""By the suffix of a file; plain text has none, and English prose in sources is asked for by name."""
