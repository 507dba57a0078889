"""Tokens of documents on disk: Arrow files that are mapped into memory, a folder of them written whole or not at all."""

import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.records import DamagedError, read_json, write_json
from configs.storage import whole_file

SHARD_TOKENS = 2**24
INDEX = "index.json"


class ShardWriter:
    """Writes the documents of one split, a file whenever `SHARD_TOKENS` tokens have come together; no document is divided."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype) -> None:
        self.folder, self.split, self.dtype = folder, split, dtype
        self.entries: list[dict[str, Any]] = []
        self._documents: list[np.ndarray] = []
        self._n_tokens = 0

    def add(self, tokens: np.ndarray) -> None:
        """Take in the tokens [n] of one document."""
        self._documents.append(tokens.astype(self.dtype))
        self._n_tokens += len(tokens)
        if self._n_tokens >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what has come together."""
        if not self._documents:
            return
        offsets = np.cumsum([0, *map(len, self._documents)], dtype=np.int64)
        values = np.concatenate(self._documents)
        path = self.folder / f"{self.split}-{len(self.entries):05d}.arrow"
        batch = pa.record_batch([pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))], names=["tokens"])
        with whole_file(path) as unfinished, unfinished.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        entry = {"file": path.name, "bytes": path.stat().st_size, "documents": len(offsets) - 1, "tokens": len(values)}
        self.entries.append({**entry, "offsets_checksum": zlib.crc32(offsets.data), "tokens_checksum": zlib.crc32(values.data)})
        self._documents, self._n_tokens = [], 0


class TextShard:
    """One file, mapped into memory. What it holds is checked against the index when it is first used.

    Raises:
        DamagedError: if it is not what was written.
    """

    def __init__(self, path: Path, entry: dict[str, Any]) -> None:
        self.path = path
        self._entry = entry
        size = path.stat().st_size if path.exists() else 0
        if size != entry["bytes"]:
            raise damaged_shard(path, f"it has {size} bytes of {entry['bytes']}")
        try:
            with pa.memory_map(str(path)) as file:
                batch = pa.ipc.open_file(file).get_batch(0)
            batch.validate()  # one that ends outside the file would end the process
            column = batch.column(0)
            self.offsets: np.ndarray = column.offsets.to_numpy()
            self._values: np.ndarray = column.values.to_numpy()
        except (pa.ArrowException, OSError, ValueError, IndexError, AttributeError) as error:
            raise damaged_shard(path, str(error)) from None
        if zlib.crc32(self.offsets.data) != entry["offsets_checksum"] or len(self._values) != entry["tokens"]:
            raise damaged_shard(path, "its checksum does not match")

    @cached_property
    def values(self) -> np.ndarray:
        """The tokens of all documents, one after the other; document i has those from `offsets[i]` to `offsets[i + 1]`.

        Of a damaged file nothing can be used any more: it is removed, so that the next start has it tokenised again, if its
        folder is no link.
        """
        if zlib.crc32(self._values.data) != self._entry["tokens_checksum"]:
            error, folder = damaged_shard(self.path, "its checksum does not match"), self.path.parent
            if folder.is_symlink():
                raise DamagedError(f"{error}; {folder} is a link, and what lies behind one is never removed: remove the link")
            self.path.unlink(missing_ok=True)
            raise DamagedError(f"{error}; the same command has the files tokenised again, and goes on")
        return self._values


def write_index(folder: Path, writers: Sequence[ShardWriter], identity: dict[str, Any]) -> None:
    """Write what `read_shards` goes by; other files that are in the folder already are noted with their checksums."""
    paths = (path for path in folder.iterdir() if path.suffix != ".arrow" and path.name != INDEX)
    others = {path.name: zlib.crc32(path.read_bytes()) for path in paths if path.is_file()}
    for writer in writers:
        writer.flush()
    index = {"identity": identity, "splits": {writer.split: writer.entries for writer in writers}, "others": others}
    write_json(folder / INDEX, index)


def read_shards(folder: Path, identity: dict[str, Any]) -> dict[str, list[TextShard]]:
    """The shards of each split.

    Raises:
        DamagedError: if the folder is damaged, or holds something else.
    """
    index = read_json(folder / INDEX)
    if index["identity"] != identity:
        raise damaged_shard(folder / INDEX, f"it should describe {identity}, but describes {index['identity']}")
    for name, checksum in index["others"].items():
        if not (folder / name).exists() or zlib.crc32((folder / name).read_bytes()) != checksum:
            raise damaged_shard(folder / name, "it is missing, or its checksum does not match")
    return {split: [TextShard(folder / entry["file"], entry) for entry in own] for split, own in index["splits"].items()}


def damaged_shard(path: Path, reason: str) -> DamagedError:
    """The error for a file that is not as it was written."""
    return DamagedError(f"{path}: damaged: {reason}")
