"""Hidden states in a folder that processes share: a manifest, and files that are added one by one."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from configs import ConfigError
from configs.records import DamagedError, kept_json, write_json
from configs.storage import held_lock, refuse_links, remove_half_written
from search.activations.key import CacheKey
from search.activations.rows import Names, RowIndex
from search.activations.shard import CacheShard, write_shard
from search.runs.run_folder import make_folder

MANIFEST, LOCK = "manifest.json", ".lock"
_LOG = logging.getLogger(__name__)
SHARD_BYTES = 2**27
"""What comes together before it is written: as much is lost by a kill, and held in memory meanwhile."""


class ArrowStore:
    """A folder with a manifest and Arrow files. One process at a time adds to it; any number read.

    Rows that are added can be found at once, and read when `filling` ends. After a kill, files that were finished are there
    and nothing else is. What is damaged is left out, and removed and told when the cache is filled: its rows are computed again.

    Raises:
        ConfigError: if the folder holds the hidden states of another trunk, or of other data.
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        self.folder, self.key = folder, key
        self._shards: dict[Path, CacheShard] = {}
        self._damaged: dict[Path, DamagedError] = {}
        self._pending: list[tuple[Names, np.ndarray, np.ndarray]] = []
        self._added: set[tuple[int, int]] = set()
        self._check_manifest()
        self._open()

    def _check_manifest(self) -> None:
        path, own = self.folder / MANIFEST, self.key.to_dict()
        found = kept_json(path, _LOG.warning)  # the other files say themselves which cache they are of
        if found is None:  # readers of one that is there need not be able to write
            self._refuse_links()
            make_folder(self.folder)
            write_json(path, own)
            return
        differing = sorted(name for name in own | found if own.get(name) != found.get(name))
        advice = f"give another folder, or delete {self.folder} to fill it again"
        if "trunk_hash" in differing:
            hashes = f"the trunk it was made with has the hash {found.get('trunk_hash')}, this one {own['trunk_hash']}"
            raise ConfigError(f"{self.folder}: stale: {hashes}; load that trunk, {advice}")
        if differing:
            texts = [f"{name} is {own.get(name)!r}, there {found.get(name)!r}" for name in differing]
            raise ConfigError(f"{self.folder}: it holds other hidden states ({'; '.join(texts)}); {advice}")

    def _refuse_links(self) -> None:
        """Before anything is written: the folder itself lies in one that may be the user's, beside what others have put there."""
        if self.folder.is_symlink():
            raise ConfigError(f"{self.folder} is a link, and what lies behind one is never written to: remove the link")
        refuse_links(self.folder)

    def _open(self) -> None:
        """Map the files that are new, and find out where each row lies."""
        known, self._shards = self._shards, {}
        self._damaged.clear()
        for path in sorted(self.folder.glob("shard-*.arrow")):
            try:
                self._shards[path] = known.get(path) or CacheShard(path, self.key)
            except DamagedError as error:
                self._damaged[path] = error
        shards = self._shards.values()
        self._ends = np.cumsum([0, *map(len, shards)])
        self._index = RowIndex(Names.together([shard.names for shard in shards]))
        self._added.clear()

    @property
    def n_rows(self) -> int:
        """Rows in the files, and those added since."""
        return int(self._ends[-1]) + len(self._added)

    def find(self, names: Names) -> np.ndarray:
        """As the contract says; a row that was added but cannot be read yet is at one past the last."""
        positions = self._index.find(names)
        for place, pair in enumerate(names.pairs() if self._added else ()):
            if pair in self._added:
                positions[place] = self._ends[-1]
        return positions

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the contract says."""
        rows = np.empty((len(positions), self.key.row_bytes), dtype=np.uint8)
        inputs_checksums = np.empty(len(positions), dtype=np.uint32)
        which = np.searchsorted(self._ends, positions, side="right") - 1
        shards = list(self._shards.values())
        for number in np.unique(which).tolist():
            asked = np.flatnonzero(which == number)
            places = positions[asked] - self._ends[number]
            rows[asked] = shards[number].read(places)
            inputs_checksums[asked] = shards[number].inputs_checksums[places]
        return rows, inputs_checksums

    def add(self, names: Names, inputs_checksums: np.ndarray, rows: np.ndarray) -> None:
        """As the contract says."""
        self._pending.append((names, inputs_checksums, rows))
        self._added.update(names.pairs())
        if sum(rows.nbytes for _, _, rows in self._pending) >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        numbers = [int(path.stem.removeprefix("shard-")) for path in self.folder.glob("shard-*.arrow")]
        path = self.folder / f"shard-{max(numbers, default=-1) + 1:06d}.arrow"
        names, inputs_checksums, rows = zip(*self._pending, strict=True)
        sums, whole = np.concatenate(inputs_checksums), np.concatenate(rows)
        write_shard(path, self.key, Names.together(names), inputs_checksums=sums, rows=whole)
        self._pending.clear()

    @contextmanager
    def filling(self, *, waits: bool) -> Iterator[None]:
        """Rows are added inside of this block; at its end, and where it is left early, what was added is on the disk."""
        self._refuse_links()
        lock = ExitStack()
        try:
            lock.enter_context(held_lock(self.folder / LOCK, waits=waits))
        except BlockingIOError:
            raise ConfigError(f"{self.folder}: another process is filling this cache; wait for it") from None
        with lock:
            remove_half_written(self.folder)
            self._open()  # another process may have added files since
            self._remove_damaged()
            try:
                yield
            finally:
                self._flush()
                self._open()

    def _remove_damaged(self) -> None:
        for path, shard in self._shards.items():
            try:
                shard.check_rows()
            except DamagedError as error:
                self._damaged[path] = error
        for path, reason in self._damaged.items():
            _LOG.warning("%s; its rows are computed again", reason)
            path.unlink()
            self._shards.pop(path, None)
        if self._damaged:
            self._open()

    def refuse_full_disk(self, n_rows: int) -> None:
        """Raise a ConfigError if there is no room for so many more rows."""
        free = shutil.disk_usage(self.folder).free
        if n_rows * self.key.row_bytes > free:
            raise ConfigError(f"{self.folder}: {self.key.size_text(n_rows)} are still to be written, but {free} are free")


def remove_store(folder: Path) -> None:
    """Remove the files of a store, and its folder if nothing else lies in it; what is no store stays as it is."""
    if folder.is_symlink() or not (folder / MANIFEST).exists():
        return
    remove_half_written(folder)
    for path in (*folder.glob("shard-*.arrow"), folder / MANIFEST, folder / LOCK):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's file lies there
        folder.rmdir()
