"""From rows to scores: the best of a grid, means over settings, errors over seeds, and what is missing is said."""

import math

import pytest

from configs.records import to_json
from search.jobs.mad.report import print_scores
from search.jobs.mad.scores import TaskScore, score, to_summary
from search.jobs.mad.setting_tables import shown_settings
from search.jobs.mad.spec import MadSpec
from tests.search.cases import mad_spec

TASKS = {
    "in-context-recall": {"task": {"vocab_size": 8, "seq_len": 16}, "changes": {"seq_len": [8, 32]}},
    "compression": {"changes": {}},
}


def two_tasks(**keys):
    return mad_spec(**{"tasks": TASKS, "changes": "all", "lrs": [1e-3, 1e-2], **keys})


def rows_of(spec, accuracy, status=lambda trial: "finished"):  # noqa: ARG005 - may depend on the trial
    """A row for each trial, as if all had run; `accuracy(trial)` is a number or a mapping of metrics."""
    rows = []
    for trial in spec.trials():
        found = accuracy(trial)
        metrics = found if isinstance(found, dict) else dict.fromkeys(("accuracy", "macro", "held_out"), found)
        row = {**trial.labels(), "status": status(trial), "steps": 4, "best_step": 2.0, "seconds": 1.0, "history": []}
        row |= {"test_accuracy": metrics["accuracy"], "test_macro_accuracy": metrics["macro"]}
        rows.append(row | {"held_out_accuracy": metrics["held_out"], "held_out_loss": 1 - metrics["held_out"]})
    return rows


def test_best_of_the_grid_then_mean_over_settings_then_over_tasks():
    spec = two_tasks(mode="mad", seeds=[0])
    base = {"baseline": 0.4, "seq_len=8": 0.6, "seq_len=32": 0.2}

    def accuracy(trial):
        worse = 0.1 * (trial.spec.lr == 1e-2) + 0.05 * (trial.spec.weight_decay == 0.1)
        return (base[trial.change] if trial.task == "in-context-recall" else 0.9) - worse

    scores = score(spec, rows_of(spec, accuracy))
    assert len(scores.cells) == 4
    assert scores.of("small", "in-context-recall") == TaskScore(pytest.approx(0.4), None)
    assert scores.of("small", "compression").value == pytest.approx(0.9)
    assert scores.of("small").value == pytest.approx(0.65)  # of tasks, not of settings
    assert scores.problems() == {}
    summary = to_summary(scores, {})
    assert summary["complete"] is True
    assert {(cell["best_lr"], cell["best_weight_decay"]) for cell in summary["settings"]} == {(1e-3, 0.0)}


def by_lr(trial):
    """The low rate is best on the test set's macro accuracy, the high one on the validation set."""
    is_low = trial.spec.lr == 1e-3
    return {"accuracy": 0.7 if is_low else 0.6, "macro": 0.8 if is_low else 0.5, "held_out": 0.1 if is_low else 0.9}


def test_mode_mad_picks_by_test_and_reports_macro():
    spec = two_tasks(mode="mad")
    assert score(spec, rows_of(spec, by_lr)).of("small").value == pytest.approx(0.8)


def test_mode_clean_picks_by_validation_and_reports_test():
    spec = two_tasks(mode="clean")
    assert score(spec, rows_of(spec, by_lr)).of("small").value == pytest.approx(0.6)


def test_mode_clean_breaks_ties_by_validation_loss():
    spec = mad_spec(lrs=[1e-3, 1e-2], weight_decays=[0.0])
    rows = rows_of(spec, lambda trial: {"accuracy": trial.spec.lr, "macro": 0.0, "held_out": 1.0})
    rows[0]["held_out_loss"], rows[1]["held_out_loss"] = 0.2, 0.1
    assert score(spec, rows).of("small").value == pytest.approx(1e-2)


def test_mean_and_standard_error_over_seeds():
    spec = two_tasks(seeds=[0, 1, 2])
    scores = score(spec, rows_of(spec, lambda trial: 0.1 * trial.spec.seed + (0.2 if trial.task == "compression" else 0.0)))
    for task, mean in (("in-context-recall", 0.1), ("compression", 0.3), (None, 0.2)):
        found = scores.of("small", task)
        assert found.value == pytest.approx(mean)
        assert found.standard_error == pytest.approx(0.1 / math.sqrt(3))


def without_results(rows, status):
    """Rows as they are for trials that left no weights to score."""
    nothing = {"test_accuracy": None, "test_macro_accuracy": None, "held_out_accuracy": None, "held_out_loss": None}
    return [{**row, **nothing} if row["status"] == status else row for row in rows]


@pytest.mark.parametrize("mode", ["mad", "clean"])
def test_a_trial_that_diverged_late_scores_with_its_best_weights_and_is_counted(mode):
    spec = two_tasks(mode=mode, seeds=[0])
    rows = rows_of(
        spec,
        lambda trial: 0.9 if trial.spec.lr == 1e-2 else 0.5,
        lambda trial: "diverged" if trial.spec.lr == 1e-2 else "stopped",
    )
    scores = score(spec, rows)
    assert scores.of("small").value == pytest.approx(0.9)
    assert scores.problems() == {"diverged": sum(row["status"] == "diverged" for row in rows)}


def test_trials_that_asha_stopped_are_counted_and_do_not_score():
    spec = two_tasks(seeds=[0])
    rows = rows_of(spec, lambda _: 0.5, lambda trial: "pruned" if trial.spec.lr == 1e-2 else "stopped")
    scores = score(spec, without_results(rows, "pruned"))
    n_pruned = sum(row["status"] == "pruned" for row in rows)
    assert scores.problems() == {"stopped by ASHA": n_pruned}
    assert sum(cell["n_pruned"] for cell in to_summary(scores, {})["settings"]) == n_pruned
    assert scores.of("small").value == 0.5


def test_a_draw_that_failed_is_made_up_for_by_another():
    spec = mad_spec(lrs=[1e-3, 1e-2], weight_decays=[0.1], sweep={"method": "optuna", "n_samples": 2})
    rows = rows_of(spec, lambda _: 0.5)[:2]
    failed = {**rows[0], "key": "0", "status": "failed"}
    assert score(spec, [failed, rows[0]]).problems() == {"failed": 1}
    assert score(spec, [failed, *rows]).problems() == {}


@pytest.mark.parametrize("mode", ["mad", "clean"])
@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_diverged_and_failed_trials_without_weights_are_counted_and_never_score(mode, status):
    spec = two_tasks(mode=mode, seeds=[0])

    def is_bad(trial):
        return trial.spec.lr == 1e-2 and trial.task == "compression"

    rows = rows_of(spec, lambda trial: 1.0 if is_bad(trial) else 0.5, lambda trial: status if is_bad(trial) else "stopped")
    scores = score(spec, without_results(rows, status))
    assert scores.of("small", "compression").value == 0.5
    assert scores.problems() == scores.problems("small", "compression") == {status: 2}
    assert scores.problems("small", "in-context-recall") == {}
    summary = to_summary(scores, {})
    assert summary["problems"] == {status: 2}
    assert summary["complete"] is (status == "diverged")
    assert [cell[f"n_{status}"] for cell in summary["settings"]] == [0, 0, 0, 2]


@pytest.mark.parametrize("mode", ["mad", "clean"])
def test_a_setting_without_a_score_makes_none_not_a_mean_of_the_rest(mode):
    spec = two_tasks(mode=mode, seeds=[0, 1])
    rows = rows_of(spec, lambda _: 0.5)
    left = [row for row in rows if not (row["change"] == "seq_len=32" and row["seed"] == 1)]
    scores = score(spec, left)
    assert scores.of("small", "in-context-recall") == TaskScore(None, None)
    assert scores.of("small") == TaskScore(None, None)
    assert scores.of("small", "compression").value == 0.5
    assert scores.problems("small", "in-context-recall") == {"not run": 4}
    summary = to_summary(scores, {})
    assert summary["complete"] is False
    assert summary["scores"]["small"] == {"in-context-recall": None, "compression": 0.5, "mean": None}


def test_a_setting_whose_trials_all_diverged_has_no_score():
    spec = two_tasks(seeds=[0])
    rows = rows_of(spec, lambda _: 0.3, lambda trial: "diverged" if trial.change == "seq_len=8" else "solved")
    scores = score(spec, without_results(rows, "diverged"))
    assert scores.of("small", "in-context-recall").value is None
    assert scores.problems() == {"diverged": 4}
    assert to_summary(scores, {})["complete"] is False


def test_missing_points_of_a_grid_are_said():
    spec = mad_spec()
    scores = score(spec, rows_of(spec, lambda _: 0.5)[:1])
    assert scores.of("small").value == 0.5
    assert scores.problems() == {"not run": 1}
    assert to_summary(scores, {})["complete"] is False


def test_the_score_of_one_setting():
    spec = two_tasks(seeds=[0, 1])
    base = {"baseline": 0.4, "seq_len=8": 0.6, "seq_len=32": 0.2}
    rows = rows_of(spec, lambda trial: base[trial.change] + 0.1 * trial.spec.seed)
    scores = score(spec, [row for row in rows if row["change"] != "seq_len=8" or row["seed"] == 0])
    assert scores.of("small", "in-context-recall", "seq_len=32") == TaskScore(pytest.approx(0.25), pytest.approx(0.05))
    assert scores.of("small", "in-context-recall", "seq_len=8") == TaskScore(None, None)


def printed(spec, rows, tmp_path, capsys):
    """What is printed of a run, without the spaces that make columns."""
    print_scores(score(spec, rows), {}, tmp_path)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_what_a_scan_over_lengths_found_is_printed_setting_by_setting(tmp_path, capsys):
    tiny = {"vocab_size": 8, "seq_len": 16}
    tasks = {"in-context-recall": {"task": tiny, "changes": {"test_seq_len": [32, 64]}}, "compression": {"changes": {}}}
    spec = two_tasks(tasks=tasks, seeds=[0], architectures={"first": ["attention"], "second": ["mlp"]})
    base = {"baseline": 0.75, "test_seq_len=32": 0.5, "test_seq_len=64": 0.25}
    rows = rows_of(spec, lambda trial: base[trial.change] - 0.125 * (trial.architecture == "second"))
    told = printed(spec, rows, tmp_path, capsys)
    assert "in context recall, setting by setting" in told
    assert [line for line in told if "test_seq_len=32" in line] == [
        "┃ architecture ┃ baseline ┃ test_seq_len=32 ┃ test_seq_len=64 ┃"
    ]
    assert "│ first │ 0.750 │ 0.500 │ 0.250 │" in told
    assert "│ second │ 0.625 │ 0.375 │ 0.125 │" in told
    assert sum("setting by setting" in line for line in told) == 1
    assert sum("beyond the training's length alone" in line for line in told) == 1


@pytest.mark.parametrize(
    ("task", "changes", "shown"),
    [
        ("memorization", "none", []),
        ("memorization", "all", ["baseline", *(f"vocab_size={n}" for n in (512, 1024, 2048, 4096, 8192))]),
        ("in-context-recall", "all", []),
        (
            "needle",
            "all",
            ["baseline", *(f"depth={d}" for d in (0.0, 0.25, 0.5, 0.75, 1.0)), "test_seq_len=256", "test_seq_len=512"],
        ),
        ("needle", ["vocab_size", "n_train"], ["baseline", "vocab_size=64", "vocab_size=128", "n_train=6400", "n_train=3200"]),
    ],
)
def test_settings_are_shown_where_they_are_few_or_a_scan(task, changes, shown):
    spec = MadSpec(architectures={"a": ["attention"]}, tasks=[task], changes=changes)
    assert shown_settings(spec.tasks[task]) == shown


def test_a_score_of_a_rack_that_looks_ahead_is_qualified(tmp_path, capsys):
    choice = {"kind": "stochastic", "main": "a", "mixers": {"a": {"kind": "kernel_attention", "causal": False}, "b": "attention"}}
    architectures = {
        "causal": ["attention", "mlp"],
        "ahead": ["mlp", "attention(causal=false)"],
        "ahead too": ["attention", choice],
    }
    spec = two_tasks(architectures=architectures, tasks=[*TASKS, "selective-copying", "addition"], changes="none", seeds=[0])
    notes = [line for line in printed(spec, rows_of(spec, lambda _: 1.0), tmp_path, capsys) if line.startswith("note")]
    ahead = "looks ahead (causal = false), and on in-context-recall, addition"
    text = f"{ahead} the answers stand in the input: these scores mean nothing"
    assert notes == [f"note, ahead: {text}", f"note, ahead too: {text}"]
    fair = two_tasks(architectures=architectures, tasks=["compression"], seeds=[0])
    assert not [line for line in printed(fair, rows_of(fair, lambda _: 1.0), tmp_path, capsys) if line.startswith("note")]


def test_best_possible_is_said_of_each_setting(tmp_path, capsys):
    spec = two_tasks(tasks=["memorization"], seeds=[0])
    told = printed(spec, rows_of(spec, lambda _: 0.5), tmp_path, capsys)
    by_setting = [line for line in told if line.startswith("│ best possible")][1]
    assert by_setting == "│ best possible │ 1.000 │ 1.000 │ 1.000 │ 0.982 │ 0.865 │ 0.632 │"


def test_rows_of_other_runs_are_left_out():
    spec = mad_spec()
    strange = [{**row, "architecture": "other"} for row in rows_of(spec, lambda _: 1.0)]
    scores = score(spec, rows_of(spec, lambda _: 0.5) + strange)
    assert scores.of("small").value == 0.5
    assert scores.problems() == {}


def test_the_ceiling_of_memorization():
    suite = MadSpec(architectures={"a": ["attention"]}, tasks=["memorization", "compression"], mode="mad")
    scores = score(suite, [])
    assert scores.ceiling("memorization") == pytest.approx(0.915, abs=3e-3)
    assert scores.ceiling("compression") == 1.0
    assert to_summary(scores, {})["ceilings"]["memorization"] == pytest.approx(0.915, abs=3e-3)


def test_json_has_no_nan():
    text = to_json({"a": math.nan, "b": [math.inf, 1.0, {"c": -math.inf}], "d": (1, None)})
    assert text == '{"a": null, "b": [null, 1.0, {"c": null}], "d": [1, null]}'
