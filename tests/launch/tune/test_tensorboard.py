"""What TensorBoard shows of trials: the ends that they had, losses that diverged, one curve for one that was tried again."""

import math
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from launch.tune.reports import FAILED
from launch.tune.tensorboard import TensorBoardLog


@pytest.fixture
def trial(tmp_path):
    config = {"lr": 0.5, "task": "copying", "points": [(0, 0.5)]}
    return SimpleNamespace(trial_id="one", config=config, local_path=str(tmp_path), init_local_path=lambda: None)


def drawn(trial):
    events = EventAccumulator(trial.local_path).Reload()
    curves = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    shown = {
        name: HParamsPluginData.FromString(metadata.plugin_data.content)
        for name, metadata in events.summary_metadata.items()
        if name.startswith("_hparams_/")
    }
    return curves, shown


def start(trial):
    log = TensorBoardLog("step")
    log.log_trial_start(trial)
    return log


@pytest.mark.parametrize("has_reported", [False, True])
@pytest.mark.parametrize(("has_failed", "status"), [(False, 1), (True, 2)])  # STATUS_SUCCESS, STATUS_FAILURE
def test_trials_end_as_they_did(trial, has_reported, has_failed, status):
    log = start(trial)
    if has_reported:
        log.log_trial_result(1, trial, {"step": 3, "loss": 0.5, "done": True, "training_iteration": 1, "rows": "[]"})
    log.log_trial_end(trial, failed=has_failed)
    curves, shown = drawn(trial)
    assert shown["_hparams_/session_end_info"].session_end_info.status == status
    hyper_parameters = shown["_hparams_/session_start_info"].session_start_info.hparams
    assert (hyper_parameters["lr"].number_value, hyper_parameters["task"].string_value) == (0.5, "copying")
    metrics = [info.name.tag for info in shown["_hparams_/experiment"].experiment.metric_infos]
    assert metrics == (["ray/tune/loss", "ray/tune/step"] if has_reported else [])
    assert curves == ({"ray/tune/loss": [(3, 0.5)], "ray/tune/step": [(3, 3.0)]} if has_reported else {})


def test_a_trial_that_failed_and_is_not_tried_again_is_a_failure_too(trial):
    log = start(trial)
    log.log_trial_result(1, trial, {"step": 1, "loss": 1.0, FAILED: False})
    log.log_trial_result(2, trial, {"step": 1, FAILED: True})
    log.log_trial_end(trial, failed=False)
    curves, shown = drawn(trial)
    assert shown["_hparams_/session_end_info"].session_end_info.status == 2
    assert f"ray/tune/{FAILED}" not in curves


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_diverged_is_not_shown_as_its_last_finite_value(trial, loss):
    log = start(trial)
    log.log_trial_result(1, trial, {"step": 1, "loss": 1.0})
    log.log_trial_result(2, trial, {"step": 2, "loss": loss})
    log.log_trial_end(trial)
    step, value = drawn(trial)[0]["ray/tune/loss"][-1]
    assert step == 2
    assert not math.isfinite(value)


def test_a_trial_that_is_tried_again_has_one_curve_over_its_own_steps(trial):
    log = start(trial)
    for step in (1, 2, 3):
        log.log_trial_result(step, trial, {"step": step, "loss": 1.0, "training_iteration": step})
    log.log_trial_start(trial)
    for iteration, step in enumerate((3, 4), start=1):  # from a checkpoint after the second
        log.log_trial_result(iteration, trial, {"step": step, "loss": 0.5, "training_iteration": iteration})
    log.log_trial_start(trial)  # and once more, in vain
    log.log_trial_end(trial, failed=True)
    assert drawn(trial)[0]["ray/tune/loss"] == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]
