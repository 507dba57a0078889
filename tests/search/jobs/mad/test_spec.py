"""What a MAD run consists of: settings, trials, labels, and what the modes fill in."""

from pathlib import Path

import pytest
import torch

import search
from configs import ConfigError
from configs.load import validate
from search.cli.show import read_spec
from search.jobs.mad.data import Data
from search.jobs.mad.job import packs, remaining
from search.jobs.mad.spec import MODES, MadSpec
from search.jobs.mad.task import TaskSpec
from search.jobs.mad.task_files import SUITE, task_names
from search.runs.run_folder import TrialLog
from tasks import IGNORED, draw
from tests.search.cases import mad_spec

ROOT = Path(__file__).parents[4]
FULL = {"architectures": {"a": ["mh-attention", "swiglu", "mh-attention", "swiglu"]}, "tasks": list(SUITE), "mode": "mad"}


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


EXTRAS = {"addition", "needle", "state-tracking"}


def test_extras_are_known_but_no_part_of_the_suite():
    assert set(task_names()) == EXTRAS | set(SUITE)
    assert not EXTRAS & set(SUITE)
    for preset in ("quick", "baseline", "full"):
        assert not EXTRAS & set(read_spec(ROOT / f"configs/mad_{preset}.yaml").tasks)


def test_extras_are_run_when_they_are_named():
    spec = MadSpec(architectures={"a": ["attention"]}, tasks=["state-tracking", "memorization"], changes=["group"])
    assert settings_of(spec) == [
        ("a", "state-tracking", "baseline"),
        ("a", "state-tracking", "group=Z60"),
        ("a", "memorization", "baseline"),
    ]
    picked = MadSpec(architectures={"a": ["attention"]}, tasks=list(SUITE), only=["needle"], changes=["depth"])
    assert [change for _, _, change in settings_of(picked)] == ["baseline", *(f"depth={d}" for d in (0.0, 0.25, 0.5, 0.75, 1.0))]


RECALL = {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 16}
LONGER = {"task": RECALL, "n_train": 8, "n_validation": 8, "n_test": 8, "changes": {"test_seq_len": [32, 64]}}


def longer_tests(**keys):
    return mad_spec(tasks={"recall": {**LONGER, **keys}}, changes="all", architectures={"a": ["attention"], "h": ["hyena"]})


def test_a_longer_test_leaves_all_other_splits_as_they_are():
    baseline, longer, longest, *_ = longer_tests().settings()
    assert [single.change for single in (baseline, longer, longest)] == ["baseline", "test_seq_len=32", "test_seq_len=64"]
    first, second = (Data.of(single.spec, 0) for single in (baseline, longest))
    for split in ("train", "validation"):
        assert torch.equal(getattr(first, split).inputs, getattr(second, split).inputs)
        assert torch.equal(getattr(first, split).targets, getattr(second, split).targets)
    assert first.test.inputs.shape == (8, 15)
    assert second.test.inputs.shape == (8, 63)


def test_settings_that_differ_in_the_test_alone_are_of_one_model():
    """The filters of hyena have a clock, and decays, that go by the greatest length."""
    settings = list(longer_tests(changes={"test_seq_len": [64, 32], "n_train": [4], "seq_len": [24, 96]}).settings())
    lengths = [single.spec.rack.max_length for single in settings if single.architecture == "h"]
    assert lengths == [64, 64, 64, 64, 64, 96]
    racks = {single.spec.rack for single in settings if single.architecture == "h" and not single.change.startswith("seq_len")}
    assert len(racks) == 1
    single = TaskSpec(task=RECALL, test_seq_len=32)
    assert single.longest_for(single) == 32


def test_a_longer_test_asks_what_lies_beyond_the_training():
    """With all positions a model that is right up to its length, and never after it, would look half right at the double."""
    baseline, _, longest = (single.spec for single in longer_tests().settings() if single.architecture == "a")
    dense = draw(longest.setting.instance("test"), 8, seed=0, split="test").targets
    asked = Data.of(longest, 0).test.targets.numpy()
    assert (asked[:, :15] == IGNORED).all()
    assert (dense[:, :15] != IGNORED).any()
    assert (asked[:, 15:] == dense[:, 15:]).all()
    assert (Data.of(baseline, 0).test.targets[:, :15] != IGNORED).sum() > 8
    shorter = mad_spec(tasks={"recall": {**LONGER, "changes": {"test_seq_len": [8]}}}, changes="all").trials()[-1].spec
    assert (Data.of(shorter, 0).test.targets[:, :7] != IGNORED).any()


@pytest.mark.parametrize(
    ("keys", "path"), [({"changes": {"test_seq_len": [32]}}, "changes.test_seq_len"), ({"test_seq_len": 32}, "test_seq_len")]
)
def test_mode_mad_has_no_longer_tests(keys, path):
    """It stops and picks on the test split."""
    raw = {"mode": "mad", "architectures": {"a": ["attention"]}, "tasks": {"recall": {"task": RECALL, **keys}}}
    with pytest.raises(ConfigError) as caught:
        validate(MadSpec, raw, "file")
    assert str(caught.value).startswith(f"file: tasks.recall.{path}: mode mad stops and picks weights on the test split")
    assert len(str(caught.value).splitlines()) == 1
    assert validate(MadSpec, {**raw, "mode": "clean"}, "file")
    if "test_seq_len" in keys:
        with pytest.raises(ConfigError, match=r"train_task: setting\.test_seq_len: mode mad stops"):
            search.train_task(None, raw["tasks"]["recall"])


def test_a_test_of_another_length_is_saved():
    setting, longer = TaskSpec(task=RECALL), TaskSpec(task=RECALL, test_seq_len=32)
    assert TaskSpec(**longer.to_dict()) == longer != setting
    assert longer.fingerprint() != setting.fingerprint()


@pytest.mark.parametrize(
    ("task", "path", "text"),
    [
        ({"task": {"kind": "compression"}, "test_seq_len": 64}, "test_seq_len", "compression has one length"),
        ({"task": {"kind": "compression"}, "changes": {"test_seq_len": [64]}}, "changes.test_seq_len[0]", "has one length"),
        ({"task": RECALL, "changes": {"test_seq_len": [32, 16]}}, "changes.test_seq_len[1]", "16 is the task's seq_len already"),
        ({"task": RECALL, "changes": {"test_seq_len": [33]}}, "changes.test_seq_len[0]", "seq_len must be even"),
        ({"task": RECALL, "changes": {"test_seq_len": ["long"]}}, "changes.test_seq_len[0]", "valid integer"),
        ({"task": RECALL, "changes": {"seq_len": [None]}}, "changes.seq_len[0]", "a number or a name is expected"),
        (
            {"task": {"kind": "state_tracking"}, "changes": {"group": ["S5"]}},
            "changes.group[0]",
            "must be at least 120",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_changed_is_told(task, path, text):
    with pytest.raises(ConfigError) as caught:
        validate(TaskSpec, task, "task")
    assert str(caught.value).startswith(f"task: {path}: ")
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
