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
from launch.scoring.shared_tensors import to_arrays, to_tensors
from launch.scoring.supernet_scorer import supernet_scorer
from launch.scoring.tune_scorer import TuneScorer
from models import placement_text
from search.evaluation.evaluator import Evaluator
from search.evaluation.score_batches import score_batches
from search.evaluation.supernet_evaluator import SupernetEvaluator
from search.runs.run_folder import TrialLog
from search.runs.workers import WorkersError
from tests.launch.scorers import PLACEMENTS, make_late, make_scorer, processes, values, workers
from tests.search import spaces

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROOT = Path(__file__).parents[3]


def scorer(folder, seconds=0.0, **changes):
    return TuneScorer(partial(make_scorer, folder, seconds), folder, workers(**changes), "cpu")


def test_the_numbers_are_those_of_one_process_and_workers_stay_warm(tmp_path):
    net = spaces.supernet(n_blocks=3, mlp="stochastic", tie_embeddings=True)
    batches = {"first": spaces.batches(), "second": spaces.batches(seq_len=6, seed=1)}
    rounds = [spaces.placements(net.slots, n, seed=n) for n in (1, 2, 5, 9)]
    with supernet_scorer(net, batches, "loss", tmp_path, workers()) as score:
        for placements in rounds:
            for numbers in (range(3), range(1, 3)):
                found = score(placements, numbers)
                chosen = {task: own[numbers.start : numbers.stop] for task, own in batches.items()}
                expected = score_batches(net, placements, chosen)
                assert found.keys() == expected.keys()
                for task, array in expected.items():
                    np.testing.assert_allclose(found[task], array, rtol=1e-5)
    state = json.loads(next(tmp_path.glob("tune/session-1/experiment_state-*.json")).read_text())
    results = [json.loads(trial[1])["last_result"] for trial in state["trial_data"]]
    shards = [result for result in results if "shard" in result]
    assert sorted(result["shard"] for result in shards) == list(range(1, len(shards) + 1))
    assert {result["round"] for result in shards} == set(range(1, 9))
    assert len({result["worker"] for result in shards}) <= 2
    events = EventAccumulator(str(tmp_path / "tune/session-1")).Reload()
    assert {event.step for event in events.Scalars("best_of_shard/second")} == set(range(1, len(shards) + 1))


def in_shared_memory(arrays):
    address = to_tensors(arrays)["weight"].data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    (backing,) = [
        " ".join(line[5:]) for line in maps if int(line[0].split("-")[0], 16) <= address < int(line[0].split("-")[1], 16)
    ]
    return lambda placements, _: {"task": np.full((len(placements), 1), float("plasma" in backing))}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what memory is whose")
def test_workers_read_the_weights_where_the_object_store_has_them(tmp_path):
    make_scorer = partial(in_shared_memory, to_arrays({"weight": torch.ones(2**20)}))
    with TuneScorer(make_scorer, tmp_path, workers(), "cpu") as score:
        assert score(PLACEMENTS, range(1))["task"].all()


def test_the_evaluator_is_the_same_on_ray(tmp_path):
    net = spaces.supernet(n_blocks=2)
    batches, shares = {"task": spaces.batches(n_batches=9)}, {"task": 1.0}
    placements = spaces.placements(net.slots, 6)
    here = SupernetEvaluator(net, batches, shares, data_fingerprint="data", race=True)(placements, keep=2)
    with supernet_scorer(net, batches, "loss", tmp_path, workers()) as score:
        there = Evaluator(score, n_batches=9, shares=shares, key="key", race=True)(placements, keep=2)
    assert [score.value for score in there] == pytest.approx([score.value for score in here], rel=1e-5)
    assert [score.n_batches for score in there] == [score.n_batches for score in here]


def test_answers_come_in_the_order_asked_and_processes_last_for_the_search(tmp_path):
    with scorer(tmp_path) as score:
        for seed in range(12):
            asked = [PLACEMENTS[index] for index in np.random.default_rng(seed).integers(len(PLACEMENTS), size=9)]
            found = score(asked, range(2, 4))
            np.testing.assert_array_equal(found["task"], values(asked, range(2, 4))["task"])
            time.sleep(0.1)  # time enough for Tune to put a worker away that nobody waits for
    assert len(processes(tmp_path)) == 2


def test_a_worker_that_is_slow_to_start_is_not_given_up_for_a_free_one(tmp_path):
    with TuneScorer(partial(make_late, tmp_path), tmp_path, workers(), "cpu") as score:
        score(PLACEMENTS, range(1))
        until = time.monotonic() + 6
        while time.monotonic() < until:
            score(PLACEMENTS, range(1))
    assert len(processes(tmp_path)) == 2


def test_a_shard_that_raises_is_tried_again(tmp_path):
    (tmp_path / "raise").write_text("once")
    with scorer(tmp_path, n=1) as score:
        np.testing.assert_array_equal(score(PLACEMENTS, range(1))["task"], values(PLACEMENTS, range(1))["task"])
    assert len((tmp_path / "scored").read_text().split()) == 2 * len(PLACEMENTS)


def test_a_shard_that_keeps_failing_ends_the_search_by_name(tmp_path):
    (tmp_path / "raise").write_text("always")
    with scorer(tmp_path, max_failures=1) as score:
        score(PLACEMENTS[:9], range(1))
        with pytest.raises(WorkersError, match="no memory for this one") as caught:
            score(PLACEMENTS[9:], range(1))
    assert "could not be scored, after 2 tries:" in str(caught.value)
    assert "b*3" in str(caught.value).splitlines()[0]
    assert (tmp_path / "scored").read_text().split().count("bbb") == 2


def test_a_worker_that_cannot_start_is_said(tmp_path):
    broken = TuneScorer(partial(make_scorer, tmp_path / "not there"), tmp_path, workers(n=1, max_failures=0), "cpu")
    with broken as score, pytest.raises(WorkersError, match=r"do not start.*\n(.|\n)*FileNotFoundError"):
        score(PLACEMENTS, range(1))


def test_a_worker_that_asks_for_too_much_is_an_error_not_a_wait(tmp_path):
    with pytest.raises(ConfigError, match=r"workers\.cpus: 99 a worker, but the cluster has 2 CPU"), scorer(tmp_path, cpus=99):
        pass


def test_an_exception_inside_the_block_winds_tune_down(tmp_path):
    score = scorer(tmp_path)
    with pytest.raises(KeyboardInterrupt), score:  # noqa: PT012
        score(PLACEMENTS, range(1))
        raise KeyboardInterrupt
    deadline = time.monotonic() + 60  # a worker that is starting starts first
    while not score._tune.done() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert score._tune.done()
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


@pytest.mark.slow
def test_workers_killed_in_a_round_and_between_rounds_are_replaced(tmp_path):
    with scorer(tmp_path, seconds=1.0) as score:
        expected = values(PLACEMENTS, range(1))["task"]
        for n_before in (2, 3, 4):
            while len(processes(tmp_path)) < n_before:  # until those that start have started
                np.testing.assert_array_equal(score(PLACEMENTS, range(1))["task"], expected)
            victim = processes(tmp_path)[-1]
            if n_before == 3:
                os.kill(victim, signal.SIGKILL)
            else:
                threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
            np.testing.assert_array_equal(score(PLACEMENTS, range(1))["task"], expected)
        score(PLACEMENTS, range(1))
    assert 4 <= len(processes(tmp_path)) <= 5


def start(folder, seconds):
    command = [sys.executable, "-m", "tests.launch.searching", str(folder), str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_lines(process, path, n_lines):
    deadline = time.monotonic() + 150
    while not (path.exists() and len(path.read_text().splitlines()) >= n_lines):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 60])
def test_an_interrupted_search_ends_soon_and_goes_on_from_its_log(tmp_path, seconds):
    process = start(tmp_path, seconds)
    wait_for_lines(process, tmp_path / ("scores.jsonl" if seconds < 60 else "scored"), 3)
    process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - interrupted < 30
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert errors.count("Traceback") == 1, errors
    logged = TrialLog(tmp_path / "scores.jsonl").rows
    assert len(logged) < len(PLACEMENTS)
    (tmp_path / "scored").unlink()

    process = start(tmp_path, 0)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    texts = {placement_text(placement): "".join(placement) for placement in PLACEMENTS}
    before = {texts[row["placement"]] for row in logged.values()}
    assert set((tmp_path / "scored").read_text().split()) == set(texts.values()) - before
    assert len(TrialLog(tmp_path / "scores.jsonl").rows) == len(PLACEMENTS)
