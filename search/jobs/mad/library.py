"""The suite for models that are not racks: any `nn.Module` that maps tokens [batch, time] to logits [batch, time, vocab_size]."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from configs import ConfigError
from configs.functions import called_by_name
from configs.load import validate
from search.jobs.mad.job import Execute, run
from search.jobs.mad.run_trials import run_trials
from search.jobs.mad.scores import score
from search.jobs.mad.spec import MODES, MadSpec
from search.jobs.mad.task import TaskSpec
from search.jobs.mad.task_files import SUITE, task_file
from search.jobs.mad.trial import Trial, TrialSpec
from search.runs.run_folder import TrialLog

if TYPE_CHECKING:
    import pandas as pd


MODEL_ARGUMENTS = ("task", "vocab_size", "max_length")


def benchmark(
    make_model_fn: Callable[..., nn.Module],
    model_id: str,
    *,
    tasks: Sequence[str] | Mapping[str, Any] | None = None,
    mode: Literal["mad", "clean"] = "mad",
    out: str | Path | None = None,
    execute: Execute | None = None,
    **keys: Any,
) -> pd.Series:
    """MAD scores of a model that the caller builds.

    Args:
        make_model_fn: called by keyword with `task` (`in-context-recall`, ..), `vocab_size` and `max_length`, it builds a fresh
            model, under the trial's seed, once a trial, and with `isolate_trials` or `trial_timeout` in another process. For
            `compression` the model must return all `max_length` positions.
        model_id: names the results; give changed models another id, or another folder.
        tasks: names, or names with what differs from `configs/tasks/`; the suite's six, if None.
        mode: `mad` for the reference's metric and model selection, `clean` for held-out ones.
        out: the run's folder, where an interrupted call goes on; a temporary one if None.
        execute: `launch.mad.sweep.execute` runs the trials on Ray; None runs them in this process.
        keys: further keys of `MadSpec`, such as `epochs=`, `changes=`, `lrs=`, `seeds=`, `train=`.

    Returns:
        Scores indexed by task; NaN where a setting has no trial to score.

    Raises:
        ConfigError: on keys or tasks that are not known, and a `make_model_fn` that takes other arguments.
        RuntimeError: if every trial failed; if some did, there is a warning.
    """
    raw = {"mode": mode, "architectures": {model_id: None}, "tasks": tasks or SUITE, **keys}
    spec = validate(MadSpec, raw, "benchmark")
    try:
        called_by_name(make_model_fn, *MODEL_ARGUMENTS)
    except ConfigError as error:
        raise ConfigError(f"benchmark: make_model_fn: {error}") from None

    make_model = partial(_model, make_model_fn, spec)
    with tempfile.TemporaryDirectory(prefix="mixrack-") as temporary:
        folder = Path(temporary if out is None else out)
        run(spec, folder, execute, make_model, show=False)
        rows = list(TrialLog(folder / "trials.jsonl").rows.values())
    failures = [row for row in rows if row["status"] == "failed"]
    if len(failures) == len(rows):
        raise RuntimeError(f"every trial of '{model_id}' failed; the first one so:\n{failures[0]['error']}")
    if failures:
        first = failures[0]["error"].strip().splitlines()[-1]
        warnings.warn(f"{len(failures)} of {len(rows)} trials of '{model_id}' failed, the first with {first}", stacklevel=2)
    scores = score(spec, rows)
    values = {task: scores.of(model_id, task).value for task in spec.tasks}
    import pandas as pd  # noqa: PLC0415 - half a second to import, for those who call this

    return pd.Series(values, name=model_id, dtype=float).rename_axis("task")


def _model(make_model_fn: Callable[..., nn.Module], spec: MadSpec, trial: Trial) -> nn.Module:
    setting, make = trial.spec.setting, called_by_name(make_model_fn, *MODEL_ARGUMENTS)
    sizes = {"vocab_size": setting.instance().vocab_size, "max_length": spec.tasks[trial.task].longest_for(setting)}
    model: nn.Module = make(task=trial.task, **sizes)
    return model


def train_task(
    model: nn.Module,
    task_config: str | Mapping[str, Any] | TaskSpec,
    *,
    lr: float = 5e-4,
    weight_decay: float = 0.0,
    epochs: int = 200,
    batch_size: int = 128,
    seed: int = 12345,
    mode: Literal["mad", "clean"] = "mad",
    train: Mapping[str, Any] | None = None,
) -> pd.Series:
    """Train one model on one task, in place, and leave it in evaluation mode with its best weights.

    Args:
        model: tokens [batch, time] -> logits [batch, time, vocab_size].
        task_config: a task of the suite by name, or its spec: `{"task": {"kind": "compression"}, "n_train": 6400}`.
        lr: learning rate.
        weight_decay: of AdamW.
        epochs: the most there are; the mode's stop rule may end training earlier.
        batch_size: of training and evaluation.
        seed: of the data, the shuffling and dropout; the model has its weights already.
        mode: as for `benchmark`.
        train: what differs from the mode's `TrainSpec`.

    Returns:
        One row: status, test and training metrics, steps, seconds.
    """
    if isinstance(task_config, str):
        task_config = task_file(task_config)
    if not isinstance(task_config, TaskSpec):
        task_config = validate(TaskSpec, task_config, "task_config")
    task_config = task_config.settings()["baseline"]
    raw_spec = {
        "model_id": type(model).__name__,
        "setting": task_config,
        "mode": mode,
        "train": {**MODES[mode]["train"], **(train or {})},
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "lr": lr,
        "weight_decay": weight_decay,
    }
    trial = Trial(type(model).__name__, task_config.task.kind, "baseline", validate(TrialSpec, raw_spec, "train_task"))
    (row,) = run_trials([trial], make_model=lambda _: model)
    import pandas as pd  # noqa: PLC0415 - as above

    return pd.Series(row, name=trial.architecture)
