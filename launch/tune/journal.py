"""The journal file of Optuna studies, opened so that what a kill left of it does no harm."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

from configs.storage import whole_file

OPERATION = {"op_code", "worker_id"}
"""What each line of a journal has, as Optuna writes it."""


def open_journal(path: Path) -> tuple[JournalStorage, int]:
    """The studies in a file, made if need be, and how many of its lines were dropped.

    Optuna glues its next line to one that a kill cut short, and from then on can neither read nor write the file. So it is cut
    back to what is whole: up to the first line that is none, for later ones count the draws before them. Whoever calls this holds
    the run's folder, so a lock that lies there is a dead process's, for which Optuna would wait half a minute.
    """
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    content = path.read_bytes() if path.exists() else b""
    *lines, rest = content.split(b"\n")
    n_whole = _n_whole(lines)
    n_dropped = len(lines) - n_whole + bool(rest)
    if n_dropped:
        with whole_file(path) as unfinished:
            unfinished.write_bytes(b"".join(line + b"\n" for line in lines[:n_whole]))
    # Optuna's usual lock is a link, and a run's folder in which a kill has left one is refused.
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))), n_dropped


def _n_whole(lines: Sequence[bytes]) -> int:
    """How many lines there are before the first that is no operation, or that Optuna cannot carry out."""
    operations: list[dict[str, Any]] = []
    for line in lines:
        try:
            operation = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or not UTF-8
            break
        if not isinstance(operation, dict) or not operation.keys() >= OPERATION:
            break
        operations.append(operation)
    if _can_replay(operations):
        return len(operations)
    return bisect_left(range(len(operations)), x=True, key=lambda number: not _can_replay(operations[: number + 1]))


def _can_replay(operations: list[dict[str, Any]]) -> bool:
    try:
        JournalStorage(_Operations(operations))
    except Exception:  # noqa: BLE001 - of a line that is damaged it raises whatever comes up
        return False
    return True


class _Operations(BaseJournalBackend):
    """A journal in memory, to be read."""

    def __init__(self, operations: list[dict[str, Any]]) -> None:
        self._operations = operations

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Those from a number on."""
        return self._operations[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Opening a journal adds nothing to it."""
        raise NotImplementedError
