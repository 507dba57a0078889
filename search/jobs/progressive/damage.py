"""What of a folder of growth is as it was written: the rest is told, and gone, so that it is done again."""

import itertools
from pathlib import Path
from typing import Any

import torch

from configs.records import DamagedError, Row, kept_json, read_rows, write_json, write_rows
from search.jobs.progressive.report import RESULT
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stages import CHOICE, MOMENTS
from search.jobs.progressive.weights import finished_folders, stage_folder
from search.runs.report import HISTORY, Say
from search.runs.run_folder import RESULTS, WEIGHTS
from search.training import checkpoint


def forget_damaged(spec: ProgressiveSpec, out: Path, say: Say) -> None:
    """Have a folder hold nothing but what this run has written; what goes is told, and done again.

    The stages after one that is damaged go with it, and those before it as far as no later stage can start from them: what the
    optimizer knew is kept of the newest stage alone. What the candidates of a stage that is done have left is not looked at.
    """
    folders, own = finished_folders(out), spec.fingerprint()
    whole = list(itertools.takewhile(lambda folder: _is_whole(folder, own, say), folders))
    if not _has_ended(spec, whole):
        while whole and _state(whole[-1] / MOMENTS, own, say) is None:
            whole.pop()
    kept = [folder / RESULT for folder in whole]
    for path in (out / "stages").glob(f"*/{RESULT}"):
        if path not in kept:
            say(f"{path.parent}: this stage is done again")
            path.unlink()
    choice = stage_folder(out, len(whole)) / CHOICE
    if kept_json(choice, say, fingerprint=own) is None:
        choice.unlink(missing_ok=True)
    if not _has_ended(spec, whole) or kept_json(out / RESULTS, say, fingerprint=own) is None:
        (out / RESULTS).unlink(missing_ok=True)


def _has_ended(spec: ProgressiveSpec, folders: list[Path]) -> bool:
    last = kept_json(folders[-1] / RESULT, lambda _: None) if folders else None
    return last is not None and (len(folders) == spec.n_stages or last["status"] == "diverged")


def _is_whole(folder: Path, fingerprint: str, say: Say) -> bool:
    """Whether row and weights are there as they were written; history and choice, which they hold too, are written again."""
    row, index = kept_json(folder / RESULT, say, fingerprint=fingerprint), int(folder.name) - 1
    state = None if row is None or row["stage"] != index + 1 else _state(folder / WEIGHTS, fingerprint, say)
    if row is None or state is None or state["index"] != index:
        return False
    if read_rows(folder / HISTORY) != (state["history"], 0):
        say(f"{folder / HISTORY}: is not what this run has written; it is written again")
        write_rows(folder / HISTORY, state["history"])
    if "chosen" in row:
        _write_choice(folder / CHOICE, row, state, say)
    return True


def _write_choice(path: Path, row: Row, state: dict[str, Any], say: Say) -> None:
    stack = {**state["initial"][str(state["uid"])], "uid": None}  # it gets its number when it is placed
    choice = {name: row[name] for name in ("fingerprint", "candidates")} | {"name": row["chosen"], "stack": stack}
    if kept_json(path, say) != choice:
        write_json(path, {name: choice[name] for name in ("fingerprint", "name", "stack", "candidates")})


def _state(path: Path, fingerprint: str, say: Say) -> dict[str, Any] | None:
    """What stands beside the tensors of a stage; None, and why is said, if they are not those of this run."""
    try:
        return checkpoint.read(path, torch.device("cpu"), fingerprint=fingerprint)[1]
    except DamagedError as error:
        say(str(error))
        return None
