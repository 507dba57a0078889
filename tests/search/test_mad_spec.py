"""What a MAD run consists of: settings, trials, labels, and what the modes fill in."""

from pathlib import Path

import pytest

from configs import ConfigError
from configs.load import validate
from search.describe import read_spec
from search.mad.job import packs, remaining
from search.mad.spec import MODES, MadSpec
from search.mad.task import TaskSpec, task_names
from search.results import TrialLog
from tests.search.cases import mad_spec

ROOT = Path(__file__).parents[2]
FULL = {"architectures": {"a": ["mh-attention", "swiglu", "mh-attention", "swiglu"]}, "tasks": list(task_names()), "mode": "mad"}


def settings_of(spec):
    return [(trial.architecture, trial.task, trial.change) for trial in spec.settings()]


def test_the_full_suite_has_66_settings_and_396_trials():
    spec = MadSpec(**FULL)
    settings = settings_of(spec)
    assert len(settings) == len(set(settings)) == 66
    counts = {task: sum(name == task for _, name, _ in settings) for task in spec.tasks}
    assert counts == {
        "compression": 11,
        "fuzzy-in-context-recall": 11,
        "in-context-recall": 11,
        "memorization": 6,
        "noisy-in-context-recall": 14,
        "selective-copying": 13,
    }
    trials = spec.trials()
    assert len(trials) == len({trial.spec.fingerprint() for trial in trials}) == 396
    assert sum(trial.spec.n_steps for trial in trials) == 5_384_400
    assert {(trial.spec.lr, trial.spec.weight_decay) for trial in trials} == {
        (lr, decay) for lr in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)
    }
    assert {trial.spec.seed for trial in trials} == {12345}


def test_labels_name_one_change_each():
    spec = MadSpec(**FULL)
    labels = [change for _, task, change in settings_of(spec) if task == "noisy-in-context-recall"]
    assert labels[0] == "baseline"
    assert sorted(labels[1:]) == sorted(
        [f"vocab_size={n}" for n in (48, 80, 144)]
        + [f"seq_len={n}" for n in (256, 512, 1024)]
        + [f"n_train={n}" for n in (6400, 3200, 1600, 800)]
        + [f"frac_noise={n}" for n in (0.4, 0.6, 0.8)]
    )


def test_a_change_changes_that_alone():
    for trial in MadSpec(**FULL).settings():
        setting, baseline = trial.spec.setting, TaskSpec(**read_spec(ROOT / f"configs/tasks/{trial.task}.yaml").to_dict())
        flat = {**baseline.task.options(), "n_train": baseline.n_train}
        changed = {**setting.task.options(), "n_train": setting.n_train}
        different = {f"{name}={value:g}" for name, value in changed.items() if value != flat[name]}
        assert different == ({trial.change} if trial.change != "baseline" else set())
        assert setting.changes == {}
        assert setting.n_test == 1280
        assert trial.spec.rack.vocab_size == setting.instance().vocab_size
        assert trial.spec.rack.max_length == setting.instance().seq_len


@pytest.mark.parametrize(
    ("changes", "n_settings"),
    [("all", 66), ("none", 6), (["seq_len"], 6 + 14), (["n_train", "frac_noise"], 6 + 5 * 4 + 3), ([], 6)],
)
def test_changes_can_be_chosen(changes, n_settings):
    assert len(settings_of(MadSpec(**FULL, changes=changes))) == n_settings


def test_a_task_can_be_overridden_in_part():
    tasks = {"in_context_recall": {"task": {"vocab_size": 20}, "n_train": 100, "changes": {"seq_len": [64]}}, "compression": None}
    spec = MadSpec(architectures={"a": ["attention"]}, tasks=tasks, changes=["seq_len"])
    recall = spec.tasks["in-context-recall"]
    assert recall.task.options() == {"vocab_size": 20, "seq_len": 128, "multi_query": True}
    assert (recall.n_train, recall.n_test) == (100, 1280)
    assert recall.changes == {"seq_len": (64,)}
    assert spec.tasks["compression"].changes == {"seq_len": (64, 128, 256)}
    assert recall.settings()["seq_len=64"].task.vocab_size == 20


def test_some_tasks_can_be_picked():
    tasks = {"in-context-recall": {"n_train": 100}, "compression": None}
    spec = MadSpec(architectures={"a": ["attention"]}, tasks=tasks, only=["in_context_recall", "memorization"], changes="none")
    assert {name: task.n_train for name, task in spec.tasks.items()} == {"in-context-recall": 100, "memorization": 256}
    assert "only" not in spec.to_dict()


def test_a_task_of_ones_own():
    own = {"task": {"kind": "memorization", "vocab_size": 16}, "n_train": 8, "changes": {"vocab_size": [32]}}
    spec = MadSpec(architectures={"a": ["attention"]}, tasks={"tiny-memory": own})
    assert settings_of(spec) == [("a", "tiny-memory", "baseline"), ("a", "tiny-memory", "vocab_size=32")]


def test_modes_fill_in_what_is_left_out():
    mad, clean = (MadSpec(**{**FULL, "mode": mode}) for mode in ("mad", "clean"))
    assert mad.seeds == (12345,)
    assert (mad.train.stop_metric, mad.train.select_metric, mad.train.stop_at) == ("macro_accuracy", "perplexity", 0.999)
    assert len(clean.seeds) >= 3
    assert (clean.train.stop_metric, clean.train.select_metric) == ("accuracy", "loss")
    for spec in (mad, clean):
        assert (spec.epochs, spec.batch_size, spec.train.patience) == (200, 128, None)
        assert spec.train.schedule.kind == "constant"
        assert spec.train.betas == (0.9, 0.999)
    assert MadSpec(**{name: value for name, value in FULL.items() if name != "mode"}).mode == "clean"
    given = MadSpec(**FULL, seeds=[7], train={"patience": 20, "stop_metric": "accuracy"})
    assert given.seeds == (7,)
    assert (given.train.patience, given.train.stop_metric, given.train.select_metric) == (20, "accuracy", "perplexity")
    assert MODES["mad"]["seeds"] == [12345]  # not written into


def test_short_forms_are_gone_from_the_saved_spec_and_it_loads_again():
    spec = MadSpec(**FULL, d_model=64, changes=["seq_len"])
    saved = spec.to_dict()
    assert not {"changes", "d_model"} & set(saved)
    assert saved["architectures"]["a"]["d_model"] == 64
    assert "layers" not in saved["architectures"]["a"]
    again = MadSpec(**saved)
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()
    assert [trial.spec.fingerprint() for trial in again.trials()] == [trial.spec.fingerprint() for trial in spec.trials()]


def test_trials_of_one_setting_are_packed():
    spec = mad_spec(lrs=[1e-3, 2e-3], seeds=[0, 1], tasks=["in-context-recall", "compression"])
    found = list(packs(spec.trials(), 6))
    assert [len(pack) for pack in found] == [6, 2, 6, 2]
    for pack in found:
        assert len({(trial.architecture, trial.task, trial.change) for trial in pack}) == 1
    assert [len(pack) for pack in packs(spec.trials(), 1)] == [1] * 16
    assert list(packs([], 6)) == []


def test_what_has_a_row_does_not_remain(tmp_path):
    spec = mad_spec()
    log = TrialLog(tmp_path / "trials.jsonl")
    first, second = spec.trials()
    log.add({**first.labels(), "status": "finished"})
    log.add({**second.labels(), "status": "failed"})
    assert remaining(spec, log) == [second]


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"lrs": [1e-3, 2e-3, 1e-3]}, "lrs"),
        ({"weight_decays": [0, 0.0]}, "weight_decays"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"architectures": {"a": ["attention"], "b": [{"kind": "attention", "bias": True}]}}, "architectures.b"),
        ({"tasks": {"compression": {"changes": {"seq_len": [64, 64]}}}}, "tasks.compression.changes.seq_len[1]"),
        ({"tasks": {"compression": {"changes": {"seq_len": [64, 32]}}}}, "tasks.compression.changes.seq_len[1]"),
    ],
    ids=str,
)
def test_what_is_there_twice_is_an_error(keys, path):
    """The same trial has one row, and what waits for a second would never be complete."""
    raw = {"architectures": {"a": ["attention"]}, "tasks": ["compression"], **keys}
    with pytest.raises(ConfigError, match="same") as caught:
        validate(MadSpec, raw, "file")
    assert str(caught.value).startswith(f"file: {path}: ")
    assert len(str(caught.value).splitlines()) == 1
