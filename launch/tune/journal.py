"""The journal file of Optuna studies, opened so that what a kill left of it does no harm."""

import json
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

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
    n_whole = next((number for number, line in enumerate(lines) if not _is_operation(line)), len(lines))
    n_dropped = len(lines) - n_whole + bool(rest)
    if n_dropped:
        with whole_file(path) as unfinished:
            unfinished.write_bytes(b"".join(line + b"\n" for line in lines[:n_whole]))
    return JournalStorage(JournalFileBackend(str(path))), n_dropped


def _is_operation(line: bytes) -> bool:
    try:
        operation = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return False
    return isinstance(operation, dict) and operation.keys() >= OPERATION
