"""What is a function of the step: learning rates and batches."""

import math

import pytest
import torch

from search.training.schedules import ScheduleSpec, learning_rate
from tests.search.cases import data


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_schedules_start_and_end(kind, warmup):
    schedule = ScheduleSpec(kind=kind, warmup_steps=warmup, min_lr=1e-5, decay_fraction=0.25)
    rates = [learning_rate(schedule, 1e-3, step, 110) for step in range(111)]
    if warmup:
        assert rates[0] == pytest.approx(1e-4)
        assert rates[:10] == pytest.approx([1e-3 * (step + 1) / 10 for step in range(10)])
    assert rates[warmup] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[110] == pytest.approx(1e-3 if kind == "constant" else 1e-5)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))


def test_schedules_in_the_middle():
    cosine = ScheduleSpec(kind="cosine", min_lr=0.0)
    assert learning_rate(cosine, 1.0, 50, 100) == pytest.approx(0.5)
    assert learning_rate(cosine, 1.0, 25, 100) == pytest.approx(0.5 + math.sqrt(0.125))
    decay = ScheduleSpec(kind="wsd", min_lr=0.0, decay_fraction=0.2)
    assert [learning_rate(decay, 1.0, step, 100) for step in (0, 80, 90, 95)] == pytest.approx([1.0, 1.0, 0.5, 0.25])
    assert learning_rate(ScheduleSpec(kind="cosine", min_lr=1e-2), 1e-3, 100, 100) == 1e-3  # never above the peak
    assert learning_rate(ScheduleSpec(warmup_steps=10), 1.0, 4, 5) == 0.5  # ends within the warm-up


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
