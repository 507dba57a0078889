"""One file of a cache: an Arrow IPC file of one record batch, mapped into memory, written whole or not at all."""

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.records import DamagedError
from configs.storage import whole_file
from search.activations.key import CacheKey
from search.activations.rows import Names, checksums

SMALL_COLUMNS = {"sample_id": np.int64, "variant": np.int32, "inputs_checksum": np.uint32, "hidden_checksum": np.uint32}
"""All but the hidden states. Arrow has no bfloat16: these are bytes, whatever their type."""


def write_shard(path: Path, key: CacheKey, names: Names, *, inputs_checksums: np.ndarray, rows: np.ndarray) -> None:
    """Write rows [n, bytes of a row] and what they are called; a reader sees all of the file or none, also after a kill."""
    small = [names.samples, names.variants, inputs_checksums, checksums(rows)]
    hidden = pa.FixedSizeBinaryArray.from_buffers(pa.binary(key.row_bytes), len(rows), [None, pa.py_buffer(rows)])
    metadata = {"key": key.fingerprint(), "checksum": _checksum(small)}
    batch = pa.record_batch([*map(pa.array, small), hidden], names=[*SMALL_COLUMNS, "hidden"]).replace_schema_metadata(metadata)
    with whole_file(path) as unfinished, unfinished.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


class CacheShard:
    """A file, mapped into memory: processes that read it share its pages. A row is checked when it is first read.

    Raises:
        DamagedError: if it is not what was written.
    """

    def __init__(self, path: Path, key: CacheKey) -> None:
        self.path = path
        try:
            with pa.memory_map(str(path)) as file:
                batch = pa.ipc.open_file(file).get_batch(0)
            batch.validate()
            small = [batch.column(name).to_numpy() for name in SMALL_COLUMNS]
            hidden = batch.column("hidden")
            self._rows = np.frombuffer(hidden.buffers()[1], dtype=np.uint8).reshape(-1, key.row_bytes)[: len(batch)]
        except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise is_damaged(path, str(error)) from None
        if [column.dtype for column in small] != list(SMALL_COLUMNS.values()):  # the checksum is of bytes, of any type
            raise is_damaged(path, "its columns are of other types")
        metadata = batch.schema.metadata or {}
        if metadata.get(b"key") != key.fingerprint().encode():
            raise is_damaged(path, f"it should be of the key {key.fingerprint()}, but is of {metadata.get(b'key')!r}")
        if metadata.get(b"checksum") != _checksum(small).encode() or len(self._rows) != len(small[0]):
            raise is_damaged(path, "its checksum does not match")
        self.names = Names(small[0], small[1])
        self.inputs_checksums, self._checksums = small[2], small[3]
        self._is_checked = np.zeros(len(batch), dtype=bool)

    def __len__(self) -> int:
        return len(self.names)

    def check_rows(self) -> None:
        """Read all rows that have not been read yet; DamagedError if one is not what was written."""
        for places in np.array_split(np.flatnonzero(~self._is_checked), max(1, len(self) // 64)):
            self.read(places)

    def read(self, places: np.ndarray) -> np.ndarray:
        """A copy of the rows at places [n] of the file: [n, bytes of a row]; DamagedError as above."""
        rows: np.ndarray = self._rows[places]
        new = np.flatnonzero(~self._is_checked[places])
        if (checksums(rows[new]) != self._checksums[places[new]]).any():
            raise is_damaged(self.path, "the checksum of a row does not match")
        self._is_checked[places[new]] = True
        return rows


def _checksum(columns: list[np.ndarray]) -> str:
    checksum = 0
    for column in columns:
        checksum = zlib.crc32(np.ascontiguousarray(column).data, checksum)
    return f"{checksum:08x}"


def is_damaged(path: Path, reason: str) -> DamagedError:
    """The error for a file that is not as it was written."""
    return DamagedError(f"{path}: damaged: {reason}; when the cache is filled again its rows are computed, and no others")
