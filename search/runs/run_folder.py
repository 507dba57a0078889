"""The folder of a run: what was asked, a log of finished trials that survives a kill, and the summary."""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs import ConfigError, Spec
from configs.load import check_version, read_yaml, validate_saved
from configs.storage import UNFINISHED, whole_file

RESULTS, TRIALS = "results.json", "trials.parquet"
CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
"""Names of files in a run's folder: the summary, the table of trials, what an unfinished run goes on from, what is learnt."""

Row = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text without NaN or infinity, which JSON does not have: they become null."""

    def clean(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: clean(inner) for key, inner in item.items()}
        return [clean(inner) for inner in item] if isinstance(item, list | tuple) else item

    return json.dumps(clean(value), allow_nan=False, indent=indent)


def make_folder(path: Path) -> None:
    """Make a folder that can be written to; ConfigError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise ConfigError(f"{path}: cannot be written to")


@contextmanager
def run_folder(out: Path, spec: Spec, *, may_change: tuple[str, ...] = ()) -> Iterator[Path]:
    """The folder of a run, made if need be and held by this process alone; ConfigError if it is another run's.

    What the spec's `may_change` fields describe lies in folders of its own there. A new folder in which nothing has been done
    yet when a ConfigError ends the block is removed, so that the corrected command may have it.
    """
    is_new = not out.exists()
    make_folder(out)
    lock, saved = out / ".lock", out / "spec.json"
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: another process is working on this run") from None
        changed = [name for name in _changed(saved, spec) if name not in may_change] if saved.exists() else []
        if changed:
            names = ", ".join(changed)
            raise ConfigError(f"{out}: holds the results of another specification ({names} changed); give another out=")
        for path in out.rglob(f".*{UNFINISHED}"):
            path.unlink()  # of a process that was killed
        write_text(saved, json.dumps(spec.saved(), indent=2))
        try:
            yield out
        except ConfigError:
            if is_new and {path.name for path in out.iterdir()} <= {lock.name, saved.name}:
                for path in (saved, lock):
                    path.unlink(missing_ok=True)
                out.rmdir()
            raise


def _changed(saved: Path, spec: Spec) -> list[str]:
    """The fields in which a saved spec differs from this one, but for how it is run."""
    tree, job = read_yaml(saved), getattr(spec, "job", None)
    check_version({"spec_version": 1, **tree}, str(saved))
    if job is not None and tree.get("job", job) != job:
        raise ConfigError(f"{saved.parent}: holds a run of the job '{tree['job']}', not of '{job}'; give another out=")
    before = validate_saved(type(spec), tree, str(saved)).content()
    return [name for name, value in spec.content().items() if before.get(name) != value]


class TrialLog:
    """Rows of finished trials, one JSON object a line, appended and flushed; the last row of a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self.n_torn = 0
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                self.n_torn += 1  # a write that a kill cut short; its trial runs again
                continue
            self.rows[row["key"]] = row
        if self.n_torn or (lines and not lines[-1].endswith("\n")):
            write_text(path, "".join(to_json(row) + "\n" for row in self.rows.values()))

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        self.add_all([row])

    def add_all(self, rows: Sequence[Row]) -> None:
        """Append rows, with one sync for all: a thousand would take seconds."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {str(row["key"]): row for row in rows}


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """All rows as one Parquet file; the training history is a column of JSON text."""
    import pandas as pd  # noqa: PLC0415 - half a second to import, for what is done once a run

    table = pd.DataFrame([{**row, "history": to_json(row.get("history", []))} for row in rows])
    with whole_file(path) as unfinished:
        table.to_parquet(unfinished, index=False)
