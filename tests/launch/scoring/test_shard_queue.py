"""The shard_queue of the evaluation workers: what is done is not handed out again."""

import asyncio
import queue
from functools import partial
from types import SimpleNamespace

import numpy as np

from launch.scoring import tune_scorer
from launch.scoring.shard_queue import ScoringShard, ShardQueue
from launch.scoring.tune_scorer import TuneScorer
from tests.launch.scorers import PLACEMENTS, make_scorer, values, workers

FIRST, SECOND, THIRD = (ScoringShard(number, 1, [("a", "b", "c")], range(2)) for number in (1, 2, 3))


def test_a_shard_whose_trial_fails_after_its_result_is_not_handed_out_again():
    async def session():
        shard_queue = ShardQueue(None)
        await shard_queue.add([FIRST, SECOND])
        assert await shard_queue.take("one") == FIRST
        await shard_queue.done(1)
        assert await shard_queue.failed("one") == (None, 0)
        return await shard_queue.take("two")

    assert asyncio.run(session()) == SECOND


def test_a_shard_that_came_back_before_its_result_was_seen_is_taken_off_the_queue():
    async def session():
        shard_queue = ShardQueue(None)
        await shard_queue.add([FIRST, SECOND])
        assert await shard_queue.take("one") == FIRST
        assert await shard_queue.failed("one") == (FIRST, 1)
        await shard_queue.done(1)
        return await shard_queue.take("two")

    assert asyncio.run(session()) == SECOND


def test_a_new_round_leaves_nothing_of_the_rounds_before():
    async def session():
        shard_queue = ShardQueue(None)
        await shard_queue.add([FIRST, SECOND])
        await shard_queue.add([THIRD])
        return await shard_queue.take("one")

    assert asyncio.run(session()) == THIRD


def test_a_result_of_an_earlier_round_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_scorer.ray, "get", lambda reference: reference)
    scorer = TuneScorer(partial(make_scorer, tmp_path), tmp_path, workers(n=1), "cpu")
    scorer._n_shards, arrived, done = 4, queue.SimpleQueue(), []
    scorer._results = SimpleNamespace(arrived=arrived)
    method = SimpleNamespace(remote=lambda _: None)
    scorer._shard_queue = SimpleNamespace(add=method, done=SimpleNamespace(remote=done.append))
    expected = values(sorted(PLACEMENTS), range(2))
    arrived.put((4, values(PLACEMENTS[:1], range(2))))
    arrived.put((5, expected))
    np.testing.assert_array_equal(scorer(sorted(PLACEMENTS), range(2))["task"], expected["task"])
    assert done == [5]
