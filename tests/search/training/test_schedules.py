"""What is a function of the step: learning rates and batches."""

import math

import pytest
import torch

from search.training.schedules import ScheduleSpec, learning_rate
from tests.search.cases import data

FALLING = ["cosine", "wsd"]


@pytest.mark.parametrize("kind", ["constant", *FALLING])
@pytest.mark.parametrize("warmup", [0, 1, 10, 82, 109])
@pytest.mark.parametrize("decay_fraction", [0.001, 0.25, 1.0])
def test_schedules_start_and_end(kind, warmup, decay_fraction):
    schedule = ScheduleSpec(kind=kind, warmup_steps=warmup, min_lr=1e-5, decay_fraction=decay_fraction)
    rates = [learning_rate(schedule, 1e-3, step, 110) for step in range(110)]
    assert rates[:warmup] == pytest.approx([1e-3 * (step + 1) / warmup for step in range(warmup)])
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert rates[109] == pytest.approx(1e-3 if kind == "constant" else 1e-5)
    assert all(later <= earlier for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))


@pytest.mark.parametrize("warmup", [0, 50, 80])
def test_a_decay_takes_its_share_of_all_steps(warmup):
    schedule = ScheduleSpec(kind="wsd", warmup_steps=warmup, min_lr=0.0, decay_fraction=0.2)
    rates = [learning_rate(schedule, 1.0, step, 100) for step in range(100)]
    assert rates[max(warmup - 1, 0) : 80] == [1.0] * (80 - max(warmup - 1, 0))
    assert rates[80:] == pytest.approx([1 - number / 20 for number in range(1, 21)])


def test_a_decay_begins_when_the_warmup_is_over():
    schedule = ScheduleSpec(kind="wsd", warmup_steps=5, min_lr=0.0, decay_fraction=0.8)
    rates = [learning_rate(schedule, 1.0, step, 9) for step in range(9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_schedules_in_the_middle():
    cosine = ScheduleSpec(kind="cosine", min_lr=0.0)
    assert learning_rate(cosine, 1.0, 50, 101) == pytest.approx(0.5)
    assert learning_rate(cosine, 1.0, 25, 101) == pytest.approx(0.5 + math.sqrt(0.125))
    assert learning_rate(ScheduleSpec(kind="cosine", min_lr=1e-2), 1e-3, 99, 100) == 1e-3  # never above the peak
    assert learning_rate(ScheduleSpec(warmup_steps=10), 1.0, 4, 5) == 0.5  # ends within the warm-up


@pytest.mark.parametrize("kind", FALLING)
def test_a_single_step_is_not_spent_at_the_lowest_rate(kind):
    assert learning_rate(ScheduleSpec(kind=kind, min_lr=0.0), 1.0, 0, 1) == 1.0


def test_batches_go_through_the_data_once_an_epoch_in_an_order_of_their_own():
    batches = data(n_examples=40, batch_size=16)
    assert batches.steps_per_epoch == 3
    epochs = [[batches[step] for step in range(first, first + 3)] for first in (0, 3)]
    assert [len(inputs) for inputs, _ in epochs[0]] == [16, 16, 8]
    rows = [sorted(row.tobytes() for inputs, _ in epoch for row in inputs.numpy()) for epoch in epochs]
    assert rows[0] == rows[1]
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    assert torch.equal(batches[4][0], data(n_examples=40)[4][0])  # any step, on its own
    assert torch.equal(torch.cat([inputs for inputs, _ in batches.in_order()]), batches.inputs)
