"""JSON that we write and read again: every object carries a checksum, and one that is not as it was written is not believed."""

import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.storage import open_without_links, write_text

Row = dict[str, Any]
CHECKSUM = "checksum"


class DamagedError(ConfigError):
    """A file of ours that is not as it was written, or is of another run; the text names the file and what is wrong with it.

    Whoever can make the file again says so and does; who cannot lets the error through, with what would help.
    """


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text without NaN or infinity, which JSON does not have: they become null."""

    def clean(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: clean(inner) for key, inner in item.items()}
        return [clean(inner) for inner in item] if isinstance(item, list | tuple) else item

    return json.dumps(clean(value), allow_nan=False, indent=indent)


def _checksum(text: str) -> str:
    return f"crc32:{zlib.crc32(text.encode()):08x}"


def row_text(row: Row) -> str:
    """A row as a line of a log: the checksum of its text stands last in it."""
    text = to_json(row)
    return f'{text[:-1]}{", " if row else ""}"{CHECKSUM}": "{_checksum(text)}"}}\n'


def without_checksum(value: Any) -> Row:
    """The object that was written; ValueError that says what is wrong if this is not as it was."""
    if not isinstance(value, dict):
        raise ValueError(f"an object is expected, found {type(value).__name__}")  # noqa: TRY004 - of a file, not of a caller
    content = {name: inner for name, inner in value.items() if name != CHECKSUM}
    if CHECKSUM not in value:
        raise ValueError("it has no checksum")
    if value.get(CHECKSUM) != _checksum(json.dumps(content)):
        raise ValueError("its checksum does not match")
    return content


def write_json(path: Path, value: Row) -> None:
    """Write one object, whole or not at all."""
    write_text(path, json.dumps(json.loads(row_text(value)), indent=2) + "\n")


def read_json(path: Path, *, fingerprint: str | None = None) -> Row:
    """The object in a file of ours.

    Args:
        path: the file.
        fingerprint: of the run that it has to be of, which stands in it under the same name; None takes any.

    Raises:
        DamagedError: if it is missing or damaged, or of another run.
        OSError: if the system refuses to read it: what is in it may well be whole.
    """
    try:
        content = without_checksum(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{path}: is missing") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8 or another content
        raise DamagedError(f"{path}: damaged: {error}") from None
    if fingerprint is not None and content.get("fingerprint") != fingerprint:
        raise DamagedError(f"{path}: is of another run ({content.get('fingerprint')}; this one is {fingerprint})")
    return content


def kept_json(path: Path, say: Callable[[str], object], *, fingerprint: str | None = None) -> Row | None:
    """What `read_json` reads, of a file that can be made again: None if it has to be, and why, if it is there, is said."""
    try:
        return read_json(path, fingerprint=fingerprint)
    except DamagedError as error:
        if path.exists():
            say(f"{error}; it is made again")
        return None


def read_rows(path: Path) -> tuple[list[Row], int]:
    """The rows of a log, and how many damaged lines there are beside them; of a log that is not there, none."""
    rows: list[Row] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    n_damaged = 0
    for line in filter(None, lines):
        try:
            rows.append(without_checksum(json.loads(line)))
        except (ValueError, RecursionError):
            n_damaged += 1
    return rows, n_damaged


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a log of these rows, whole or not at all."""
    write_text(path, "".join(map(row_text, rows)))


def add_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a log; they are on the disk when this returns, with one sync for all: a thousand would take seconds."""
    with open_without_links(path, adds=True) as file:
        file.write("".join(map(row_text, rows)))
        file.flush()
        os.fsync(file.fileno())
