"""Data sets: the instances of a task by seed and split, kept on disk and mapped into memory."""

import hashlib
import json
import logging
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.records import DamagedError
from configs.storage import whole_file
from tasks.checks import SPLITS, check_integers, check_split
from tasks.task import Examples, Split, Task

_LOG = logging.getLogger(__name__)

FORMAT = 1
"""Part of every file's name: raise it when samplers or files change, and no old file is read again."""


def draw(task: Task, n_examples: int, *, seed: int, split: Split) -> Examples:
    """Draw a data set: the same arrays for the same arguments, unrelated ones for any other seed or split."""
    check_integers(minimum=0, n_examples=n_examples, seed=seed)
    check_split(split)
    stream = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),))
    return task.sample(np.random.default_rng(stream), n_examples, split)


def cached(task: Task, n_examples: int, *, seed: int, split: Split, folder: str | Path) -> Examples:
    """What `draw` gives, from an Arrow IPC file in `folder` that is written at the first call and mapped into memory.

    The file is named by the task's kind, the split and a fingerprint of everything its content depends on. It appears whole
    or not at all, whoever else is writing it; one that is damaged or holds something else is told, and drawn and written again.
    The arrays are read-only and share their memory with every process that maps them.
    """
    check_integers(minimum=0, n_examples=n_examples, seed=seed)
    check_split(split)
    identity = _identity(task, n_examples, seed, split)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:12]
    path = Path(folder) / f"{_kind(task)}-{split}-{fingerprint}.arrow"
    shape = (n_examples, task.input_length)
    if path.exists():
        try:
            return _read(path, shape, identity)
        except DamagedError as error:
            _LOG.warning("%s; its instances are drawn again", error)
    _write(path, draw(task, n_examples, seed=seed, split=split), identity)
    return _read(path, shape, identity)


def _kind(task: Task) -> str:
    return type(task).__module__.rpartition(".")[2]


def _identity(task: Task, n_examples: int, seed: int, split: Split) -> str:
    parts = {"kind": _kind(task), "n_examples": n_examples, "seed": seed, "split": split, "format": FORMAT}
    if (data := task.data_fingerprint()) is not None:
        parts["data"] = data
    return json.dumps({**parts, "options": asdict(task)}, sort_keys=True, default=int)


def _write(path: Path, examples: Examples, identity: str) -> None:
    arrays = [examples.inputs, examples.targets]
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1]) for array in arrays]
    metadata = {"identity": identity, "checksum": _checksum(arrays)}
    batch = pa.record_batch(columns, names=["inputs", "targets"]).replace_schema_metadata(metadata)
    with whole_file(path) as unfinished, unfinished.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _read(path: Path, shape: tuple[int, int], identity: str) -> Examples:
    try:
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        batch.validate()
        arrays = [column.flatten().to_numpy(zero_copy_only=True).reshape(shape) for column in batch.columns]
    except (pa.ArrowException, OSError, ValueError, IndexError, TypeError) as error:
        raise DamagedError(f"{path}: damaged: {error}") from None
    if types := {str(array.dtype) for array in arrays} - {"int64"}:  # the checksum is of bytes, whatever they are taken for
        raise DamagedError(f"{path}: damaged: a column is {types.pop()}, not int64")
    metadata = batch.schema.metadata or {}
    if metadata.get(b"identity") != identity.encode():
        raise DamagedError(f"{path}: should hold {identity}, but holds {metadata.get(b'identity')!r}")
    if metadata.get(b"checksum") != _checksum(arrays).encode():
        raise DamagedError(f"{path}: damaged: its checksum does not match")
    return Examples(*arrays)


def _checksum(arrays: list[np.ndarray]) -> str:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(array.data, checksum)
    return f"{checksum:08x}"
