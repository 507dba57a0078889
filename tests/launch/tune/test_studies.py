"""What Optuna is told of draws, and which trials ASHA stops, where trials are stopped early, tried again, or end in NaN."""

import math
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from launch.tune.schedulers import AshaPerSetting
from launch.tune.sessions import next_session
from launch.tune.studies import StudySearch

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {"lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}
FIXED = {"one": {"task": "copying"}}


@pytest.fixture
def storage():
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def search(storage):
    return StudySearch(FIXED, {"one": 2}, SPACE, storage, metric="accuracy", time="epoch", whole="rows")


def drawn(storage):
    return optuna.load_study(study_name="one", storage=storage).trials


def report(search, epoch, accuracy, **more):
    result = {"epoch": epoch, "accuracy": accuracy, "training_iteration": 99, **more}
    search.on_trial_result("trial", result)
    return result


def test_a_draw_that_was_stopped_early_is_pruned_with_its_last_report(search, storage):
    assert search.suggest("trial")["task"] == "copying"
    report(search, 1, 0.25)
    search.on_trial_complete("trial", {"epoch": 2, "accuracy": 0.125, "done": True})  # Tune reports no more than this
    (draw,) = drawn(storage)
    assert (draw.state, draw.value, draw.intermediate_values) == (TrialState.PRUNED, 0.125, {1: 0.25, 2: 0.125})


def test_a_draw_that_is_tried_again_has_its_reports_under_its_own_epochs(search, storage):
    search.suggest("trial")
    for epoch, accuracy in [(1, 0.1), (2, 0.2), (3, 0.3), (3, 0.3), (4, 0.4)]:  # from a checkpoint behind the second epoch
        report(search, epoch, accuracy)
    last = report(search, 4, 0.45, rows="[]")
    report(search, 4, 0.45, rows="[]", done=True)  # Tune repeats it at the end
    search.on_trial_complete("trial", last)
    (draw,) = drawn(storage)
    assert (draw.state, draw.value) == (TrialState.COMPLETE, 0.45)
    assert draw.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


@pytest.mark.parametrize("accuracy", [math.nan, math.inf])
def test_a_draw_whose_last_value_is_no_number_has_failed(search, storage, accuracy):
    search.suggest("trial")
    search.on_trial_complete("trial", report(search, 1, accuracy, rows="[]"))
    assert [(draw.state, draw.intermediate_values) for draw in drawn(storage)] == [(TrialState.FAIL, {})]


def test_a_draw_that_raised_has_failed(search, storage):
    search.suggest("trial")
    search.on_trial_complete("trial", error=True)
    assert [draw.state for draw in drawn(storage)] == [TrialState.FAIL]


def test_a_draw_that_took_too_long_has_failed_though_its_trial_returned(search, storage):
    search.suggest("trial")
    search.on_trial_complete("trial", report(search, 1, 0.0, rows="[]", failed=True))
    assert [draw.state for draw in drawn(storage)] == [TrialState.FAIL]


def test_draws_of_a_study_that_was_cut_short_are_drawn_again(search, storage):
    first = search.suggest("trial")
    again = StudySearch(FIXED, {"one": 2}, SPACE, storage, metric="accuracy", time="epoch", whole="rows")
    assert again.suggest("other")["lr"] != first["lr"]
    assert [draw.state for draw in drawn(storage)] == [TrialState.FAIL, TrialState.RUNNING]


def test_draws_under_way_do_not_count_as_poor_ones_whatever_optuna_takes_for_granted(monkeypatch, storage):
    given, sampler = [], optuna.samplers.TPESampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **options: given.append(options) or sampler(**options))
    StudySearch(FIXED, {"one": 2}, SPACE, storage, metric="accuracy", time="epoch", whole="rows")
    assert [options["constant_liar"] for options in given] == [False]


def asha():
    return AshaPerSetting(("task",), metric="accuracy", time="epoch", whole="rows", grace_period=2)


def judged(scheduler, name, epoch, accuracy, task="copying", **more):
    trial = SimpleNamespace(trial_id=name, config={"task": task})
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "accuracy": accuracy, "training_iteration": 1, **more})


def test_asha_judges_a_trial_at_a_rung_by_its_value_there_or_not_at_all():
    scheduler = asha()
    for number in range(8):
        assert judged(scheduler, f"first {number}", 2, number / 10) == "CONTINUE"
    assert judged(scheduler, "slow", 1, 0.0) == "CONTINUE"
    assert judged(scheduler, "slow", 2, 0.1) == "STOP"
    assert judged(scheduler, "slow in another setting", 2, 0.1, task="recall") == "CONTINUE"
    assert judged(scheduler, "goes on from a checkpoint", 9, 0.1) == "CONTINUE"  # what it had at 2 and 8 nobody knows
    assert judged(scheduler, "goes on from a checkpoint", 10, 0.9) == "CONTINUE"
    assert judged(scheduler, "as good as the best", 2, 0.55) == "CONTINUE"  # not measured by what others had later
    assert judged(scheduler, "tried again", 2, 0.6) == "CONTINUE"
    assert judged(scheduler, "tried again", 2, 0.0) == "CONTINUE"  # was judged
    assert judged(scheduler, "ended", 2, 0.0, rows="[]") == "CONTINUE"


def test_a_session_has_a_name_that_none_before_it_has(tmp_path):
    assert next_session(tmp_path / "none") == "session-1"
    for name in ("session-1", "session-3", "session-old"):
        (tmp_path / name).mkdir()
    assert next_session(tmp_path) == "session-4"
