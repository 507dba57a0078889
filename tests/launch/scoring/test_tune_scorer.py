"""Evaluation on Ray: the numbers of one process, warm workers in every round, failures tried again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import ConfigError
from launch.scoring.shared_tensors import to_arrays
from launch.scoring.supernet_scorer import supernet_scorer
from launch.scoring.tune_scorer import TuneScorer
from models import placement_text
from search.evaluation.evaluator import Evaluator
from search.evaluation.score_batches import score_batches
from search.evaluation.supernet_evaluator import SupernetEvaluator
from search.runs.run_folder import TrialLog
from search.runs.workers import WorkersError
from tests.launch.scorers import PLACEMENTS, make_late, make_scorer, processes, values, workers
from tests.launch.searching import search
from tests.search import spaces

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROOT = Path(__file__).parents[3]


def scorer(folder, seconds=0.0, **changes):
    return TuneScorer(partial(make_scorer, folder, seconds), folder, workers(**changes), "cpu")


def wait_until(holds):
    while not holds():  # the time limit of the tests is that of this one too
        time.sleep(0.05)


def test_the_numbers_are_those_of_one_process_and_workers_stay_warm(tmp_path):
    net = spaces.supernet(n_blocks=3, mlp="stochastic", tie_embeddings=True)
    batches = {"first": spaces.batches(n_batches=9), "second": spaces.batches(n_batches=9, seq_len=6, seed=1)}
    rounds = [spaces.placements(net.slots, n, seed=n) for n in (1, 2, 5, 9)]
    shares = {"first": 0.5, "second": 0.5}
    racing = spaces.placements(net.slots, 5, seed=2)  # each is a fifth or more from being dropped, or not
    raced = SupernetEvaluator(net, batches, shares, data_fingerprint="data", race=True)(racing, keep=2)
    with supernet_scorer(net, batches, "loss", tmp_path, workers()) as score:
        for placements in rounds:
            for numbers in (range(3), range(1, 3)):
                found = score(placements, numbers)
                chosen = {task: own[numbers.start : numbers.stop] for task, own in batches.items()}
                expected = score_batches(net, placements, chosen)
                assert found.keys() == expected.keys()
                for task, array in expected.items():
                    np.testing.assert_allclose(found[task], array, rtol=1e-5)
        there = Evaluator(score, n_batches=9, shares=shares, key="key", race=True)(racing, keep=2)
    assert [score.value for score in there] == pytest.approx([score.value for score in raced], rel=1e-5)
    assert [score.n_batches for score in there] == [score.n_batches for score in raced]
    assert {score.n_batches for score in there} == {8, 9}
    state = json.loads(next(tmp_path.glob("tune/session-1/experiment_state-*.json")).read_text())
    results = [json.loads(trial[1])["last_result"] for trial in state["trial_data"]]
    shards = [result for result in results if "shard" in result]
    assert sorted(result["shard"] for result in shards) == list(range(1, len(shards) + 1))
    assert {result["round"] for result in shards} == set(range(1, 11))
    assert len({result["worker"] for result in shards}) <= 2
    candidates = [(result["round"], row["placement"]) for result in shards for row in result["candidates"]]
    asked = [placements for placements in rounds for _ in range(2)]  # over two ranges of the batches each
    searched = [(n, placement) for n, placement in candidates if n <= len(asked)]  # the race comes after them
    assert sorted(searched) == sorted((n, placement_text(each)) for n, own in enumerate(asked, start=1) for each in own)
    last = {row["placement"]: row["scores"] for result in shards if result["round"] == 8 for row in result["candidates"]}
    for placement, row in zip(placements, found["second"], strict=True):
        assert last[placement_text(placement)]["second"] == pytest.approx(row.mean())
    events = EventAccumulator(str(tmp_path / "tune/session-1"), {"tensors": 0}).Reload()
    assert {event.step for event in events.Scalars("best_of_shard/second")} == set(range(1, len(shards) + 1))
    texts = str([event.tensor_proto.string_val for event in events.Tensors("candidates/text_summary")])
    assert all(f"- {placement}: " in texts for _, placement in candidates)


def test_a_search_has_its_answers_in_order_of_processes_that_last_until_a_shard_keeps_failing(tmp_path):
    def check(seed):
        asked = [PLACEMENTS[index] for index in np.random.default_rng(seed).integers(len(PLACEMENTS), size=9)]
        np.testing.assert_array_equal(score(asked, range(2, 4))["task"], values(asked, range(2, 4))["task"])

    def n_started():
        path = tmp_path / "memory"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def n_tries():
        return (tmp_path / "scored").read_text().split().count("bbb")

    arrays = to_arrays({"weight": torch.ones(2**20)})
    tuned = TuneScorer(partial(make_late, tmp_path, arrays), tmp_path, workers(max_failures=1), "cpu")
    with pytest.raises(WorkersError, match="no memory for this one") as caught, tuned as score:  # noqa: PT012
        check(0)
        wait_until(lambda: len(processes(tmp_path)) == 2)
        for seed in range(12):  # one is free, and is not given to the trial whose own is starting
            check(seed)
            time.sleep(0.1)  # time enough for Tune to put a worker away that nobody waits for
        assert (len(processes(tmp_path)), n_started()) == (2, 1)
        (tmp_path / "start").touch()
        wait_until(lambda: n_started() == 2)
        for seed in range(12):
            check(seed)
            time.sleep(0.1)
        assert len(processes(tmp_path)) == 2
        if sys.platform == "linux":
            assert all("plasma" in backing for backing in (tmp_path / "memory").read_text().splitlines())

        (tmp_path / "scored").unlink()
        (tmp_path / "raise").write_text("once")
        np.testing.assert_array_equal(score(PLACEMENTS, range(1))["task"], values(PLACEMENTS, range(1))["task"])
        assert n_tries() == 2

        (tmp_path / "scored").unlink()
        (tmp_path / "raise").write_text("always")
        score(PLACEMENTS[:9], range(1))
        score(PLACEMENTS[9:], range(1))
    assert "could not be scored, after 2 tries:" in str(caught.value)
    assert "b*3" in str(caught.value).splitlines()[0]
    assert n_tries() == 2
    wait_until(tuned._tune.done)
    wait_until(lambda: ray.available_resources().get("CPU") == 2)


def test_a_worker_that_cannot_start_is_said_and_does_not_outlast_the_search(tmp_path):
    broken = TuneScorer(partial(make_scorer, tmp_path / "not there"), tmp_path, workers(n=1, max_failures=0), "cpu")
    with broken as score, pytest.raises(WorkersError, match=r"do not start.*\n(.|\n)*FileNotFoundError"):
        score(PLACEMENTS, range(1))
    wait_until(broken._tune.done)
    assert broken._tune.exception() is None


def test_a_worker_that_asks_for_too_much_is_an_error_not_a_wait(tmp_path):
    with pytest.raises(ConfigError, match=r"workers\.cpus: 99 a worker, but the cluster has 2 CPU"), scorer(tmp_path, cpus=99):
        pass


@pytest.mark.slow
def test_workers_killed_in_a_round_and_between_rounds_are_replaced(tmp_path):
    def kill(victim):
        scored = len((tmp_path / "scored").read_text())
        wait_until(lambda: len((tmp_path / "scored").read_text()) > scored)
        os.kill(victim, signal.SIGKILL)

    with scorer(tmp_path, seconds=0.5) as score:
        expected = values(PLACEMENTS, range(1))["task"]
        for n_before in (2, 3):
            while len(processes(tmp_path)) < n_before:  # until those that start have started
                np.testing.assert_array_equal(score(PLACEMENTS, range(1))["task"], expected)
            victim = processes(tmp_path)[-1]
            if n_before == 3:
                os.kill(victim, signal.SIGKILL)
            else:
                threading.Thread(target=kill, args=(victim,)).start()
            np.testing.assert_array_equal(score(PLACEMENTS, range(1))["task"], expected)
        score(PLACEMENTS, range(1))
    assert 3 <= len(processes(tmp_path)) <= 4


def start(folder):
    command = [sys.executable, "-m", "tests.launch.searching", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_an_interrupted_search_does_not_wait_for_its_shards_and_goes_on_from_its_log(tmp_path):
    (tmp_path / "last").touch()
    process, scored = start(tmp_path), tmp_path / "scored"
    wait_until(lambda: process.poll() is not None or (scored.exists() and "bbb" in scored.read_text()))
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()  # long before the shard under way is done
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert errors.count("Traceback") == 1, errors
    logged = TrialLog(tmp_path / "scores.jsonl").rows
    assert 3 <= len(logged) < len(PLACEMENTS)
    for name in ("last", "scored"):
        (tmp_path / name).unlink()

    search(tmp_path)  # on another cluster
    texts = {placement_text(placement): "".join(placement) for placement in PLACEMENTS}
    before = {texts[row["placement"]] for row in logged.values()}
    assert set((tmp_path / "scored").read_text().split()) == set(texts.values()) - before
    assert len(TrialLog(tmp_path / "scores.jsonl").rows) == len(PLACEMENTS)
