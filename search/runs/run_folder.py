"""The folder of a run: what was asked, a log of finished trials that survives a kill, and the summary."""

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs import ConfigError, Spec
from configs.load import check_version, validate_saved
from configs.records import CHECKSUM, DamagedError, Row, add_rows, read_json, read_rows, to_json, write_json, write_rows
from configs.storage import held_lock, refuse_links, remove_half_written, whole_file

SPEC, RESULTS, TRIALS = "spec.json", "results.json", "trials.parquet"
CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
"""Names of files in a run's folder: what was asked, the summary, the table of trials, what an unfinished run goes on from, what
is learnt."""

_LOCK = ".lock"
BESIDE = "run:"
"""Before a path in a spec: it starts from the folder of the run itself, wherever that lies."""


def make_folder(path: Path) -> None:
    """Make a folder that can be written to; ConfigError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise ConfigError(f"{path}: cannot be written to")


def folder_named(text: str, out: Path) -> Path:
    """The folder or file that a spec names: `run:../start` lies beside the run's own folder `out`."""
    return out / text.removeprefix(BESIDE) if text.startswith(BESIDE) else Path(text)


@contextmanager
def run_folder(out: Path, spec: Spec, *, may_change: tuple[str, ...] = ()) -> Iterator[Path]:
    """The folder of a run, made if need be and held by this process alone; ConfigError if it is another run's.

    What the spec's `may_change` fields describe lies in folders of its own there. A new folder in which nothing has been done
    yet when a ConfigError ends the block is removed, so that the corrected command may have it.
    """
    is_new = not out.exists()
    make_folder(out)
    refuse_links(out)
    lock, saved = out / _LOCK, out / SPEC
    try:
        with held_lock(lock, waits=False):
            changed = [name for name in _changed(saved, spec) if name not in may_change] if saved.exists() else []
            if changed:
                names = ", ".join(changed)
                raise ConfigError(f"{out}: holds the results of another specification ({names} changed); give another out=")
            remove_half_written(out)
            write_json(saved, spec.saved())
            try:
                yield out
            except ConfigError:
                if is_new and {path.name for path in out.iterdir()} <= {lock.name, saved.name}:
                    for path in (saved, lock):
                        path.unlink(missing_ok=True)
                    out.rmdir()
                raise
    except BlockingIOError:
        raise ConfigError(f"{out}: another process is working on this run") from None


def saved_spec(folder: Path) -> Row:
    """What a run that is in a folder was asked, in plain values.

    Raises:
        DamagedError: if that is not there as it was written.
    """
    path = folder / SPEC
    try:
        return read_json(path)
    except DamagedError as error:
        _refuse_other_version(path)
        help_ = f"if the run in {folder} is the one that is asked for, delete this file: what is done there is used again"
        if not path.exists():
            help_ = f"the command that has run in {folder} writes it again, given once more"
        raise DamagedError(f"{error}; {help_}") from None


def _refuse_other_version(path: Path) -> None:
    """ConfigError if a spec that has no checksum says that it is of another version: the first ones had none."""
    tree = None
    with contextlib.suppress(ValueError, OSError, RecursionError):
        tree = json.loads(path.read_bytes())
    if isinstance(tree, dict) and CHECKSUM not in tree:
        check_version({"spec_version": 1, **tree}, str(path))


def _changed(saved: Path, spec: Spec) -> list[str]:
    """The fields in which a saved spec differs from this one, but for how it is run."""
    tree, job = saved_spec(saved.parent), getattr(spec, "job", None)
    check_version({"spec_version": 1, **tree}, str(saved))
    if job is not None and tree.get("job", job) != job:
        raise ConfigError(f"{saved.parent}: holds a run of the job '{tree['job']}', not of '{job}'; give another out=")
    before = validate_saved(type(spec), tree, str(saved)).content()
    return [name for name, value in spec.content().items() if before.get(name) != value]


class TrialLog:
    """Rows of finished trials, one JSON object a line, appended and flushed; the last row of a key counts.

    Lines that are not as they were written are dropped, and counted in `n_damaged`: what they told of is done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        rows, self.n_damaged = read_rows(path)
        whole = [row for row in rows if self.is_whole(row)]
        self.n_damaged += len(rows) - len(whole)
        self.rows: dict[str, Row] = {row["key"]: row for row in whole}
        if self.n_damaged or (rows and not path.read_bytes().endswith(b"\n")):
            write_rows(path, list(self.rows.values()))

    def is_whole(self, row: Row) -> bool:
        """Whether a row has what is read of it."""
        return isinstance(row.get("key"), str)

    def drop(self, keys: Collection[str]) -> None:
        """Forget rows, for good."""
        self.rows = {key: row for key, row in self.rows.items() if key not in keys}
        write_rows(self.path, list(self.rows.values()))

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        self.add_all([row])

    def add_all(self, rows: Sequence[Row]) -> None:
        """Append rows, all with one sync."""
        add_rows(self.path, rows)
        self.rows |= {str(row["key"]): row for row in rows}


def tell_damage(log: TrialLog, say: Callable[[str], object], what: str) -> None:
    """Say that lines of a log were dropped, and that `what` they told of is done again."""
    if log.n_damaged:
        say(f"{log.path}: {log.n_damaged} damaged line(s) were dropped; {what}")


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """All rows as one Parquet file; the training history is a column of JSON text, and a mapping without keys is null."""
    import pandas as pd  # noqa: PLC0415 - half a second to import, for what is done once a run

    # Parquet has no column of mappings that have no keys: of racks that all diverged there are no accuracies.
    columns = [{name: None if value == {} else value for name, value in row.items()} for row in rows]
    table = pd.DataFrame([{**row, "history": to_json(row.get("history") or [])} for row in columns])
    with whole_file(path) as unfinished:
        table.to_parquet(unfinished, index=False)
