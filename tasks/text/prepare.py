"""Files to a folder of tokens: split, tokenised and written once, by one process, whole or not at all."""

import contextlib
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from configs import ConfigError
from configs.records import DamagedError
from configs.storage import held_lock, is_out_of_room, refuse_links
from tasks.checks import SPLITS
from tasks.task import Split
from tasks.text.corpus import TextFile, by_content, documents
from tasks.text.shards import ShardWriter, TextShard, read_shards, write_index
from tasks.text.tokens import Bpe, Tokens

_LOG = logging.getLogger(__name__)

_FORMAT = 2
"""Part of every folder's name: raise it when what is written changes, and no old folder is read again."""

BATCH_BYTES = 2**22
PROGRESS_SECONDS = 10.0
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What tokens depend on beside the content of files. `tokenizer` is `bytes`, `bpe` or the fingerprint of a model's."""

    field: str
    tokenizer: str
    vocab_size: int
    validation_fraction: float
    max_documents: int | None
    max_bytes: int | None


def prepare(
    files: Sequence[TextFile], recipe: Recipe, parent: Path, tokens: Tokens | None
) -> tuple[Path, dict[str, list[TextShard]]]:
    """The folder of tokens of the files, made if it is not there yet, and what lies in it; what is damaged is made again.

    Args:
        files: the files.
        recipe: how they become tokens.
        parent: where the folder is.
        tokens: the tokenizer; None has a BPE trained on the files.

    Raises:
        ConfigError: for files that cannot be read or hold no text, and a folder that cannot be written.
    """
    hashed = by_content(files)
    content = hashlib.sha256("\n".join(name for name, _ in hashed).encode()).hexdigest()
    version = tokenizers.__version__ if recipe.tokenizer != "bytes" else None
    identity = {"format": _FORMAT, "content": content, "tokenizers": version, **asdict(recipe)}
    folder = parent / f"text-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"
    try:
        return folder, read_shards(folder, identity)
    except DamagedError as error:
        reason = str(error) if folder.exists() else None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with held_lock(parent / f".{folder.name}.lock", waits=True):
            _make(folder, identity, partial(_write, [file for _, file in hashed], recipe, identity, tokens), reason)
        return folder, read_shards(folder, identity)
    except OSError as error:
        if is_out_of_room(error):
            raise
        key = "files" if str(error.filename) in [str(file.path) for file in files] else "folder"
        raise ConfigError(f"{key}: {error.filename or folder}: cannot be read or written: {error.strerror}") from None


def _make(folder: Path, identity: dict[str, Any], write: Callable[[Path], None], damage: str | None) -> None:
    """Make the folder; one that is there and damaged gets its files anew, each in the place of the one before."""
    with contextlib.suppress(DamagedError):
        read_shards(folder, identity)
        return  # another process has been faster
    if damage is not None:
        refuse_links(folder)
        if folder.is_symlink():
            raise ConfigError(f"{damage}; {folder} is a link, and what lies behind one is never written to: remove the link")
        _LOG.warning("%s; the files are tokenised again", damage)
        write(folder)
        return
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # a kill may have left one
    unfinished.mkdir()
    try:
        write(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(files: Sequence[TextFile], recipe: Recipe, identity: dict[str, Any], tokens: Tokens | None, folder: Path) -> None:
    def read() -> Iterator[bytes]:
        limits = {"max_documents": recipe.max_documents, "max_bytes": recipe.max_bytes}
        return (document for document in documents(files, field=recipe.field, **limits) if document)

    if next(read(), None) is None:
        given = ", ".join(str(file.path) for file in files[:3]) + (", ..." if len(files) > 3 else "")
        raise ConfigError(
            f"files: no text in {given} (within max_documents={recipe.max_documents}, max_bytes={recipe.max_bytes})"
        )
    if tokens is None:
        shown = _counted(read(), "read for the tokenizer")
        ours = (document for document in shown if split_of(document, recipe.validation_fraction) == "train")
        trained = Bpe.trained(ours, recipe.vocab_size)
        trained.save(folder / TOKENIZER_FILE)
        tokens = trained
    dtype = np.dtype(np.uint16 if tokens.vocab_size <= 2**16 else np.uint32)
    writers = {split: ShardWriter(folder, split, dtype) for split in SPLITS}
    separator = [tokens.separator]
    for batch in _batches(_counted(read(), "tokenised")):
        for document, encoded in zip(batch, tokens.encode(batch), strict=True):
            writers[split_of(document, recipe.validation_fraction)].add(np.concatenate([encoded, separator]))
    write_index(folder, list(writers.values()), identity)


def split_of(document: bytes, validation_fraction: float) -> Split:
    """The split of a document, from the hash of its text: copies are never on both sides."""
    # Not the hash that orders plain files: else a cap would take validation documents first.
    chance = int.from_bytes(hashlib.blake2b(document, digest_size=8, person=b"split").digest(), "big") / 2**64
    if chance < validation_fraction:
        return "validation"
    return "test" if chance < 2 * validation_fraction else "train"


def _batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Documents of about `BATCH_BYTES` together, which is what is held in memory of them."""
    batch: list[bytes] = []
    n_bytes = 0
    for document in documents:
        batch.append(document)
        n_bytes += len(document)
        if n_bytes >= BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    yield batch


def _counted(documents: Iterable[bytes], verb: str) -> Iterator[bytes]:
    """The documents, with a line of progress now and then."""
    started = reported = time.monotonic()
    n_bytes = 0
    for document in documents:
        yield document
        n_bytes += len(document)
        if time.monotonic() - reported > PROGRESS_SECONDS:
            reported = time.monotonic()
            sys.stderr.write(f"text: {n_bytes / 1e6:,.0f} MB {verb}, {n_bytes / 1e6 / (reported - started):,.1f} MB/s\n")
