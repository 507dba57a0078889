"""Racing: what is dropped early is surely behind, and never stands above what was measured to the end."""

import math

import numpy as np
import pytest

from search.evaluation.evaluator import Evaluator
from search.evaluation.racing import beaten, level_of, looks
from search.evaluation.score_log import ScoreLog

SHARES = {"task": 1.0}


class Landscape:
    """A scorer with planted values: [placements, batches] of numbers, and what was asked of it."""

    def __init__(self, values):
        self.values = values
        self.placements = [(f"p{index}",) for index in range(len(values))]
        self.asked = []

    def __call__(self, placements, batches):
        self.asked.append((len(placements), batches))
        rows = [int(name[1:]) for (name,) in placements]
        return {"task": self.values[rows, batches.start : batches.stop]}

    def evaluator(self, **keys):
        return Evaluator(self, n_batches=self.values.shape[1], shares=SHARES, key="key", **{"race": True, **keys})


def planted(effects, n_batches=64, noise=0.3, seed=0):
    """Batches are hard or easy for all alike, which is far more than placements differ; a noise of their own comes on top."""
    generator = np.random.default_rng(seed)
    common = generator.normal(scale=5.0, size=n_batches)
    return Landscape(np.asarray(effects)[:, None] + common + generator.normal(scale=noise, size=(len(effects), n_batches)))


def ordered(scores):
    return list(np.argsort([-float(score) for score in scores]))


@pytest.mark.parametrize("seed", range(5))
def test_a_race_keeps_the_best_of_the_full_evaluation_and_saves_most_of_it(seed):
    effects = np.random.default_rng(100 + seed).normal(size=40)
    landscape = planted(effects, seed=seed)
    race = landscape.evaluator()
    full = landscape.evaluator(race=False)(landscape.placements)
    scores = race(landscape.placements, keep=4)
    assert ordered(scores)[:4] == ordered(full)[:4]
    assert race.counts.n_batch_evaluations + race.counts.n_saved_by_race == 40 * 64
    assert race.counts.n_saved_by_race > 0.5 * 40 * 64
    assert sum(n * len(batches) for n, batches in landscape.asked[1:]) == race.counts.n_batch_evaluations


NOISES = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "heavy tails": lambda generator, shape: generator.standard_t(3, size=shape),
    "unequal": lambda generator, shape: generator.normal(size=shape) * generator.uniform(0.1, 3, size=(shape[0], 1)),
    "skewed": lambda generator, shape: generator.exponential(size=shape),
    "right or wrong": lambda generator, shape: generator.integers(0, 2, size=shape).astype(float),
}


@pytest.mark.parametrize("noise", NOISES)
def test_near_ties_are_not_dropped_more_often_than_the_confidence_says(noise):
    """Candidates that differ by noise alone: a race loses one of those that all batches favour in at most 1 of 100 rounds."""
    n_rounds, n_lost = 300, 0
    for seed in range(n_rounds):
        generator = np.random.default_rng(seed)
        values = NOISES[noise](generator, (12, 64))
        level = level_of(0.99, n_candidates=12, keep=3, n_looks=3)
        best, running = set(np.argsort(-values.mean(1), kind="stable")[:3]), np.arange(12)
        for look in looks(64)[:-1]:
            running = running[~beaten(values[running, :look], keep=3, n_batches=64, level=level)]
        n_lost += not best <= set(running)
    assert n_lost <= 0.01 * n_rounds + 3 * math.sqrt(0.01 * n_rounds)


def test_no_more_are_dropped_than_leaves_the_best():
    landscape = planted(np.linspace(0, 100, 20))
    values = landscape.values[:, :16]
    out = beaten(values, keep=7, n_batches=64, level=1e-3)
    assert list(np.flatnonzero(~out)) == list(range(13, 20))


def test_differences_that_are_all_the_same_decide_nothing():
    values = np.repeat([[0.0], [1.0]], 8, axis=1)
    assert not beaten(values, keep=1, n_batches=64, level=1e-2).any()
    values[1, 0] = 1.1
    assert beaten(values, keep=1, n_batches=64, level=1e-2).tolist() == [True, False]


def test_looks_double_and_end_with_all():
    assert looks(64) == [8, 16, 32, 64]
    assert looks(20) == [8, 16, 20]
    assert looks(8) == [8]


def test_what_was_dropped_stands_below_every_survivor_however_lucky_its_batches_were():
    """The first batches are easy: a plain mean over them would be far above everything that was measured to the end."""
    landscape = planted(np.linspace(0, 5, 30))
    landscape.values[:, :8] += 50
    scores = landscape.evaluator()(landscape.placements, keep=3)
    dropped = [score for score in scores if score.is_estimate]
    survivors = [score for score in scores if not score.is_estimate]
    assert len(dropped) > 15
    assert {score.n_batches for score in survivors} == {64}
    assert all(len(score.batches["task"]) == score.n_batches < 64 for score in dropped)
    assert max(map(float, dropped)) < min(map(float, survivors))
    assert np.mean(dropped[0].batches["task"]) > max(map(float, survivors))


def test_the_value_of_what_was_dropped_is_near_its_value_on_all_batches():
    landscape = planted(np.linspace(0, 5, 30))
    scores = landscape.evaluator()(landscape.placements, keep=3)
    far = [(float(score), landscape.values[index].mean()) for index, score in enumerate(scores) if score.n_batches == 8]
    assert len(far) > 5
    np.testing.assert_allclose(*zip(*far, strict=True), atol=0.5)


def test_without_keep_nobody_is_dropped_and_neither_where_all_are_kept():
    landscape = planted(np.linspace(0, 5, 10))
    race = landscape.evaluator()
    assert not any(score.is_estimate for score in race(landscape.placements[:5]))
    assert not any(score.is_estimate for score in race(landscape.placements, keep=10))
    assert race.counts.n_saved_by_race == 0


def test_a_placement_that_gives_no_number_is_the_worst_and_troubles_nobody():
    landscape = planted([*np.linspace(0, 5, 20), 9.0, 9.0])
    landscape.values[20] = np.nan
    landscape.values[21, 40] = np.nan
    scores = landscape.evaluator()(landscape.placements, keep=2)
    values = [float(score) for score in scores]
    assert values[20] == values[21] == -math.inf
    assert np.isfinite(values[:20]).all()
    assert np.argmax(values) == np.argmax(landscape.values[:20].mean(1))


def test_a_race_goes_on_from_the_log_and_repeats_nothing(tmp_path):
    landscape = planted(np.linspace(0, 5, 30))
    first = landscape.evaluator(log=ScoreLog(tmp_path / "scores.jsonl"))
    scores = first(landscape.placements, keep=3)
    again = landscape.evaluator(log=ScoreLog(tmp_path / "scores.jsonl"))
    assert again(landscape.placements, keep=3) == scores
    assert again.counts.n_batch_evaluations == 0
    assert again.counts.n_from_log == first.counts.n_batch_evaluations
    # What was dropped is continued, not repeated, where another round wants all of it; and the first round stays what it was.
    landscape.asked.clear()
    assert again([landscape.placements[0]])[0].n_batches == 64
    assert landscape.asked == [(1, range(8, 64))]
    last = landscape.evaluator(log=ScoreLog(tmp_path / "scores.jsonl"))
    assert last(landscape.placements, keep=3) == scores
    assert last.counts.n_batch_evaluations == 0


def test_what_is_at_minus_infinity_is_worse_than_what_is_not():
    values = np.random.default_rng(0).normal(size=(4, 8))
    values[1, 3] = values[2, :] = -math.inf
    assert beaten(values, keep=2, n_batches=64, level=1e-9).tolist() == [False, True, True, False]
    assert not beaten(values, keep=3, n_batches=64, level=1e-9).any()
