"""Which rows of a trial log are of use to a run: those of its own trials, whose weights are there if they are asked for."""

from pathlib import Path

import torch

from configs.records import DamagedError, Row
from search.jobs.mad.run_trials import weights_path
from search.jobs.mad.spec import MadSpec
from search.jobs.mad.trial import Trial
from search.runs.console import label
from search.runs.run_folder import TrialLog
from search.training import checkpoint


def drop_useless(spec: MadSpec, log: TrialLog, folder: Path) -> list[str]:
    """Forget the rows that are of no use; why, a line each. `folder` is where weights are left."""
    settings = {(trial.architecture, trial.task, trial.change): trial for trial in spec.settings()}
    reasons: dict[str, str] = {}
    for key, row in log.rows.items():
        setting = settings.get((str(row.get("architecture")), str(row.get("task")), str(row.get("change"))))
        trial = None if setting is None else setting.at(row["seed"], row["lr"], row["weight_decay"])
        if trial is None or trial.spec.fingerprint() != key:
            reasons[key] = f"{log.path}: a row of no trial of this run ({key}) is left out"
        elif spec.save_weights and (problem := _problem(trial, row, folder)):
            reasons[key] = f"{label(row)} runs again: {problem}"
    if reasons:
        log.drop(reasons)
    return list(reasons.values())


def _problem(trial: Trial, row: Row, folder: Path) -> str | None:
    """What is wrong with the weights that a trial has left, if it has left any."""
    if row["status"] in ("failed", "pruned"):
        return None
    try:
        checkpoint.read(weights_path(trial, folder), torch.device("cpu"), fingerprint=trial.spec.fingerprint())
    except DamagedError as error:
        return str(error)
    return None
