"""What every task promises: one body, every registered task runs through it."""

import zlib
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from tasks import IGNORED, TASKS, Finite, Task, draw
from tasks.dataset import FORMAT
from tests.tasks.synthetic.grid import CHANGES

SPLITS = ("train", "validation", "test")
NOT_OF_TYPE = {
    bool: (1, "yes", None),
    int: (-1, 1.5, True, "3", None),
    float: (-0.1, 1.0, True, "0.5", float("nan"), None),
    str: (1, True, "", None),
    type(None): (-1, 1.5, True, ""),
}

CHECKSUMS = {
    "compression": 0x1F8EAA54,
    "fuzzy_in_context_recall": 0x60AFB5F4,
    "in_context_recall": 0x4034ED9F,
    "memorization": 0x16D7BD6E,
    "noisy_in_context_recall": 0x8738BAF1,
    "selective_copying": 0xE3033943,
    "addition": 0xE7765392,
    "needle": 0x34AF1B20,
    "state_tracking": 0x932E34D0,
}

FINITE = [kind for kind in TASKS if isinstance(TASKS[kind](), Finite)]
each_kind = pytest.mark.parametrize("kind", TASKS)
each_drawn_kind = pytest.mark.parametrize("kind", [kind for kind in TASKS if kind not in FINITE])
each_finite_kind = pytest.mark.parametrize("kind", FINITE)
each_split = pytest.mark.parametrize("split", SPLITS)


def sample(task, n_examples, split="train", seed=0):
    return task.sample(np.random.default_rng(seed), n_examples, split)


@each_kind
def test_a_kind_is_a_frozen_task_with_a_default_for_every_option(kind):
    task = TASKS[kind]()
    assert isinstance(task, Task)
    assert type(task).__name__.lower() == kind.replace("_", "")
    with pytest.raises(FrozenInstanceError):
        task.vocab_size = 3
    assert TASKS.build(TASKS.part(kind)) == task


@each_kind
@each_split
@pytest.mark.parametrize("n_examples", [0, 1, 30])
def test_examples_have_the_promised_shape_and_range(kind, split, n_examples):
    task = TASKS[kind]()
    examples = sample(task, n_examples, split)
    assert len(examples) == n_examples
    for array in (examples.inputs, examples.targets):
        assert array.shape == (n_examples, task.input_length)
        assert array.dtype == np.int64
        assert array.flags.writeable
    assert ((examples.inputs >= 0) & (examples.inputs < task.vocab_size)).all()
    supervised = examples.targets != IGNORED
    assert ((examples.targets >= 0) & (examples.targets < task.vocab_size))[supervised].all()
    assert supervised.any(axis=1).all()
    assert not np.shares_memory(examples.inputs, examples.targets)


@each_kind
def test_heads_and_ceilings_are_known(kind):
    task = TASKS[kind]()
    assert task.read_out == ("autoencoder" if kind == "compression" else "language_model")
    assert 0 < task.ceiling(1) <= task.ceiling(100) <= 1


@each_kind
@each_split
def test_drawing_is_a_function_of_the_generator_alone(kind, split):
    task = TASKS[kind]()
    first, again, other = sample(task, 40, split), sample(task, 40, split), sample(task, 40, split, seed=1)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert not np.array_equal(first.inputs, other.inputs)


def is_read_off_ahead(task):
    """Whether at some distance behind questions their answers stand (but at the ends of texts), where there is such a place."""
    examples = sample(task, 200, "test")
    for distance in range(1, task.input_length):
        supervised = examples.targets[:, :-distance]
        is_supervised = supervised != IGNORED
        if is_supervised.any() and (supervised == examples.inputs[:, distance:])[is_supervised].mean() > 0.9:
            return True
    return False


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in TASKS),
        ("in_context_recall", {"multi_query": False}),
        ("noisy_in_context_recall", {"multi_query": False}),
        ("fuzzy_in_context_recall", {"multi_query": False}),
        ("fuzzy_in_context_recall", {"multi_query": False, "v_motif_size": 1}),
        ("needle", {"depth": 0.5}),
    ],
)
def test_whether_answers_stand_ahead_is_what_the_data_say(kind, options):
    task = TASKS[kind](**options)
    assert task.answers_stand_ahead is is_read_off_ahead(task)


@each_drawn_kind
def test_validation_follows_the_rules_of_test(kind):
    task = TASKS[kind]()
    np.testing.assert_array_equal(sample(task, 40, "validation").targets, sample(task, 40, "test").targets)


@each_drawn_kind
def test_no_row_comes_twice_over_splits_and_seeds(kind):
    """At the baselines a repetition by chance is out of the question."""
    task = TASKS[kind]()
    drawn = [draw(task, 400, seed=seed, split=split).inputs for seed in (0, 1, 12345) for split in SPLITS]
    rows = [row.tobytes() for inputs in drawn for row in inputs]
    assert len(set(rows)) == len(rows)


@each_finite_kind
@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_epoch_has_every_row_once_in_an_order_of_its_own(kind, split):
    task = TASKS[kind]()
    n_rows = task.n_rows(split)
    epochs = [task.rows(split, 0, n_rows * epoch, n_rows) for epoch in range(2)] + [task.rows(split, 1, 0, n_rows)]
    rows = [[row.tobytes() for row in np.concatenate([epoch.inputs, epoch.targets], axis=1)] for epoch in epochs]
    assert sorted(rows[0]) == sorted(rows[1]) == sorted(rows[2])
    assert rows[0] != rows[1] != rows[2] != rows[0]
    again = task.rows(split, 0, n_rows - 3, 6)
    assert [row.tobytes() for row in np.concatenate([again.inputs, again.targets], axis=1)] == rows[0][-3:] + rows[1][:3]


@each_kind
def test_options_of_a_wrong_type_are_named(kind):
    for option in fields(TASKS[kind]):
        for value in NOT_OF_TYPE[type(option.default)]:
            with pytest.raises(ValueError, match=f"{option.name}.* got {value!r}"):
                TASKS[kind](**{option.name: value})


@each_kind
def test_an_unknown_split_is_an_error(kind):
    with pytest.raises(ValueError, match="unknown split 'eval'; known: train, validation, test"):
        sample(TASKS[kind](), 1, "eval")


@pytest.mark.parametrize("kind", CHANGES)
def test_every_difficulty_setting_can_be_drawn(kind):
    for change in CHANGES[kind]:
        options = {name: value for name, value in change.items() if name != "n_train"}
        task = TASKS[kind](**options)
        for split in ("train", "test"):
            assert sample(task, 8, split).inputs.shape == (8, task.input_length)


def test_the_grid_has_66_settings():
    assert [len(changes) for changes in CHANGES.values()] == [11, 14, 11, 6, 11, 13]


@pytest.mark.parametrize("kind", CHECKSUMS)
def test_what_format_1_draws_is_what_files_of_format_1_hold(kind):
    """Where this fails on purpose, raise `FORMAT`: files of old would be taken for the new draws."""
    assert FORMAT == 1
    checksum = 0
    for split in ("train", "test"):
        examples = draw(TASKS[kind](), 3000, seed=0, split=split)
        checksum = zlib.crc32(examples.targets.data, zlib.crc32(examples.inputs.data, checksum))
    assert checksum == CHECKSUMS[kind]
