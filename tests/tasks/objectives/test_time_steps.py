"""Time by depth, and time that is drawn."""

import math
import sys
import warnings

import numpy as np
import pytest

from tasks.objectives.shared.objective import Draw
from tasks.objectives.shared.time_steps import DepthTime, as_times, time_steps_of_batch, time_steps_of_samples
from tasks.time_mappings import TIME_MAPPINGS

DRAW = Draw(seed=3, stage=1, variant=2)


def squares(stack_idx, max_stacks, num_time_steps):
    return (num_time_steps - 1) * (stack_idx / (max_stacks - 1)) ** 2


def beyond(stack_idx, max_stacks, num_time_steps):
    return (-5, 0.4 * num_time_steps, 2 * num_time_steps)[stack_idx * 2 // (max_stacks - 1)]


def broken(stack_idx, *_):
    return (0, 40, 20)[stack_idx]


def test_the_linear_table_ends_at_the_last_step_by_itself():
    times = DepthTime(max_stacks=12)
    assert times.n_steps == 1101
    assert times.table == tuple(range(0, 1101, 100))
    assert [times.time_step(index) for index in (0, 2, 11)] == [0, 200, 1100]
    assert times.time(3) == pytest.approx(3 / 11)
    assert DepthTime(max_stacks=4, n_time_steps=1000).table == (0, 100, 200, 300)


@pytest.mark.parametrize("n_stacks", [2, 3, 8, 40])
def test_the_exponential_table_rises_from_end_to_end(n_stacks):
    times = DepthTime(max_stacks=n_stacks, mapping="exponential", n_time_steps=5000)
    formula = [4999 * (math.exp(3 * i / (n_stacks - 1)) - 1) / (math.exp(3) - 1) for i in range(n_stacks)]
    assert (times.table[0], times.table[-1]) == (0, 4999)
    assert np.abs(np.array(times.table) - formula).max() <= 0.5
    assert (np.diff(times.table) > 0).all()
    assert (np.diff(times.table, 2) > 0).all()


@pytest.mark.parametrize("mapping", ["linear", "exponential"])
def test_the_direction_of_noise_turns_the_table_round(mapping):
    up, down = (DepthTime(max_stacks=5, mapping=mapping, noise_direction=way) for way in ("increasing", "decreasing"))
    assert down.table == up.table[::-1] != up.table


@pytest.mark.parametrize("mapping", ["linear", "exponential"])
def test_a_single_stack_has_time_0(mapping):
    times = DepthTime(max_stacks=1, mapping=mapping)
    assert (times.table, times.n_steps, times.time(0)) == ((0,), 1, 0.0)


@pytest.mark.parametrize("index", [-1, 5])
def test_there_are_no_more_stacks_than_said(index):
    with pytest.raises(ValueError, match=f"below max_stacks = 5; got {index}"):
        DepthTime(max_stacks=5).time_step(index)


EXACT = (0, 62, 250, 562, 1000)


@pytest.mark.parametrize("custom", [squares, list(EXACT), (*EXACT, 1000)], ids=["function", "list", "longer"])
def test_a_custom_mapping_is_a_function_or_a_list(custom):
    times = DepthTime(max_stacks=5, mapping="custom", custom=custom, n_time_steps=1001)
    assert tuple(times.table) == EXACT


@pytest.mark.parametrize("kind", TIME_MAPPINGS)
@pytest.mark.parametrize("n_stacks", [1, 2, 7])
def test_a_mapping_by_name_rises_within_bounds(kind, n_stacks):
    table = DepthTime(max_stacks=n_stacks, mapping="custom", custom=kind, n_time_steps=1001).table
    assert table[0] == 0
    assert max(table) <= 1000
    assert (np.diff(table) > 0).all()


def test_no_name_runs_what_lies_elsewhere(monkeypatch, tmp_path):
    (tmp_path / "somebody_elses.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("somebody_elses:f", "somebody_elses", "..somebody_elses", "shared.x", "../cosine", "os:getcwd"):
        with pytest.raises(ValueError, match="unknown time mapping"):
            DepthTime(max_stacks=3, mapping="custom", custom=name)
    assert "somebody_elses" not in sys.modules


def test_a_custom_step_is_kept_within_bounds():
    times = DepthTime(max_stacks=3, mapping="custom", custom=beyond, n_time_steps=100)
    assert times.table == (0, 40, 99)


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"mapping": "custom", "custom": broken, "n_time_steps": 100}, r"\[0, 40, 20\] of 100"),
        ({"time_per_stack": 150, "n_time_steps": 120}, r"\[0, 119, 119\] of 120"),
        ({"mapping": "exponential", "n_time_steps": 2}, r"\[0, 0, 1\] of 2"),
    ],
)
def test_times_out_of_order_are_told_once(options, table):
    with pytest.warns(UserWarning, match=f"stacks do not have times in order.*{table}") as told:
        times = DepthTime(max_stacks=3, **options)
    assert len(told) == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [times.time_step(index) for index in range(3)] == list(times.table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_stacks": 0}, "max_stacks must be an integer, at least 1; got 0"),
        ({"time_per_stack": 1.5}, "time_per_stack must be an integer, at least 1; got 1.5"),
        ({"n_time_steps": 0}, "n_time_steps must be an integer, at least 1; got 0"),
        ({"mapping": "cubic"}, "mapping must be one of linear, exponential, custom; got 'cubic'"),
        ({"noise_direction": "up"}, "noise_direction must be one of increasing, decreasing; got 'up'"),
        ({"mapping": "custom"}, "the mapping custom needs one of its own, the others have none; custom got None"),
        ({"custom": squares}, "others have none; linear got <function"),
        ({"mapping": "custom", "custom": "cosin"}, "unknown time mapping 'cosin'; did you mean 'cosine'"),
        ({"mapping": "custom", "custom": lambda *_: math.nan}, "must return a number; got nan for stack 0"),
        ({"mapping": "custom", "custom": lambda *_: "3"}, "must return a number; got '3' for stack 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DepthTime(**{"max_stacks": 3, **options})


def test_drawn_times_are_uniform_and_a_samples_own():
    sample_ids = np.arange(50_000)
    steps = time_steps_of_samples(10, sample_ids, DRAW)
    counts = np.bincount(steps, minlength=10)
    assert len(counts) == 10
    assert np.abs(counts - 5000).max() < 4 * math.sqrt(50_000 * 0.1 * 0.9)
    order = np.random.default_rng(0).permutation(50_000)[:100]
    assert np.array_equal(time_steps_of_samples(10, sample_ids[order], DRAW), steps[order])
    for other in (Draw(seed=4, stage=1, variant=2), Draw(seed=3, stage=2, variant=2), Draw(seed=3, stage=1, variant=3)):
        same = (time_steps_of_samples(10, sample_ids, other) == steps).mean()
        assert abs(same - 0.1) < 4 * math.sqrt(0.09 / 50_000)


def test_a_batch_may_have_one_time():
    drawn = np.array([time_steps_of_batch(5, 3, DRAW, step) for step in range(2000)])
    assert drawn.shape == (2000, 3)
    assert (drawn == drawn[:, :1]).all()
    assert np.array_equal(time_steps_of_batch(5, 2, DRAW, 7), drawn[7, :2])
    assert np.abs(np.bincount(drawn[:, 0], minlength=5) - 400).max() < 4 * math.sqrt(2000 * 0.2 * 0.8)
    assert (time_steps_of_batch(10**6, 1, Draw(seed=3, stage=1, variant=3), 0) != time_steps_of_batch(10**6, 1, DRAW, 0)).all()


def test_steps_are_times_from_0_to_1():
    assert as_times(np.array([0, 1, 2, 4]), 5).tolist() == [0, 0.25, 0.5, 1]
    assert as_times(np.array([0]), 1).tolist() == [0]
