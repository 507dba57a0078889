"""The Tune trainable of the MAD suite: trains one grid point or a pack of them, and reports."""

import math
from typing import Any

import torch
from ray import cloudpickle

from configs.records import to_json
from launch.tune.reports import FAILED, stoppable, tell_tune
from launch.tune.searchers import Config
from search.jobs.mad.attempt import attempt, failed_rows, run_contained
from search.jobs.mad.run_trials import MakeModel
from search.jobs.mad.trial import Trial, TrialSpec
from search.runs.isolation import IsolationSpec
from search.runs.own_process import TookTooLongError

GridPoint = tuple[int, float, float]
SETTING = ("architecture", "task", "change", "seed")
"""The keys of a configuration that say which specification its trials share."""
EPOCH, ROWS = "epoch", "rows"
"""Keys of a report: how far the trial is, which goes on where it goes on from a checkpoint; and, in the last one, its rows."""


def name_of(labels: Config) -> str:
    """The name of a setting and seed: of its study, and of its trials' common specification."""
    return " ".join(f"{key}={labels[key]}" for key in SETTING)


def points_of(config: Config) -> list[GridPoint]:
    """The seeds, learning rates and weight decays of a configuration: one point, or those of a pack."""
    return config.get("points") or [(config["seed"], config["lr"], config["weight_decay"])]


def run_config(
    config: Config,
    *,
    settings: dict[str, Any],
    options: dict[str, Any],
    n_threads: int,
    make_model: MakeModel | None,
    limits: IsolationSpec,
) -> None:
    """Run a configuration; the last report carries the finished rows.

    A single trial that raises is left to Tune, which tries it again, but not one that took too long; in a pack the others go on,
    and it becomes a failed row.
    """
    torch.set_num_threads(n_threads)
    architecture, task, change, raw = settings[name_of(config)]
    setting = Trial(architecture, task, change, TrialSpec.model_validate(raw))
    trials = [setting.at(*point) for point in points_of(config)]
    steps_per_epoch, reported_step = setting.spec.steps_per_epoch, 0

    def evaluated(trial: Trial, row: dict[str, float]) -> None:
        nonlocal reported_step
        del trial
        if row["step"] > reported_step:  # once an evaluation; of a pack, the first that is still running stands for all
            reported_step = int(row["step"])
            judged = {name: finite_or_zero(row[name]) for name in ("accuracy", "macro_accuracy")}
            tell_tune({EPOCH: reported_step // steps_per_epoch, **row, **judged})

    run = run_contained if len(trials) == 1 else attempt
    given = {"limits": limits, "dumps": cloudpickle.dumps, "make_model": make_model, "on_evaluation": evaluated, **options}
    with stoppable():
        try:
            rows = run(trials, **given)
        except TookTooLongError as error:
            rows = failed_rows(trials, str(error))
        objective = setting.spec.train.stop_metric
        best = max(rows, key=lambda row: finite_or_zero(row.get(f"held_out_{objective}")))
        numbers = {name: value for name, value in best.items() if name.startswith(("test_", "held_out_")) and value is not None}
        epoch = max(row.get("steps", 0) for row in rows) // steps_per_epoch
        numbers[objective] = finite_or_zero(best.get(f"held_out_{objective}"))
        has_failed = all(row["status"] == "failed" for row in rows)
        tell_tune({EPOCH: epoch, **numbers, ROWS: to_json(rows), FAILED: has_failed})


def finite_or_zero(accuracy: float | None) -> float:
    """What a trial is judged by: a model that diverged is as good as none."""
    return accuracy if accuracy is not None and math.isfinite(accuracy) else 0.0
