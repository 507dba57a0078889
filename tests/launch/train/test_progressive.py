"""Growth on Ray: the numbers of one process, workers replaced, candidates side by side, a driver that is killed."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from configs.records import read_json
from launch.backend import ON_RAY
from launch.train.trainer import grow_on_ray
from launch.tune.candidates import train_candidates_on_ray
from search.jobs.progressive.candidates import CandidateSpec
from search.jobs.progressive.job import run
from tests.launch.processes import kill_a_worker, kill_with_workers
from tests.launch.train.test_trainer import AFTER_TRAINING
from tests.search.growths import (
    AHEAD,
    BLOCK,
    STACK,
    grow_here,
    growth_spec,
    model_growth,
    numbers,
    rows,
    same_bits,
    stages_here,
    state,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Train's own, of a part of Ray that is not used here
]

ROOT = Path(__file__).parents[3]
LINEAR = {"n_blocks": 1, "block": {**BLOCK, "mixer": {"kind": "linear_attention", "n_heads": 2}}}
WIDE = {"n_blocks": 1, "block": {**BLOCK, "mlp": {"kind": "mlp", "d_ff": 40}}}


def told(row):
    """What of a row is the same whichever process has computed it."""
    return {name: value for name, value in numbers(row).items() if not name.startswith("cache_") and name != "candidates"}


@pytest.mark.usefixtures("local_ray")
def test_a_growth_with_candidates_is_that_of_one_process_to_the_last_bit(tmp_path):
    """One worker, trials that train side by side on one cache, and one of them that fails."""
    candidates = {"linear": LINEAR, "wide": WIDE, "wild": {**STACK, "lr_scale": 1e30}}
    growth = {"target_stacks": 2, "cache_mode": "auto"}
    workers = {"max_failures": 0}
    spec = growth_spec(candidates=candidates, growth=growth, choice={"n_steps": 4}, workers=workers)
    assert grow_here(spec, tmp_path / "here") == 1  # for the one that fails
    assert run(spec, tmp_path / "there", ON_RAY, say=lambda _: None) == 1
    here, there = (
        [{key: row[key] for key in ("name", "loss", "error")} for row in choice["candidates"]]
        for choice in (read_json(tmp_path / out / "stages/02/choice.json") for out in ("here", "there"))
    )
    assert here == there
    assert [row["error"] is None for row in here] == [True, True, False]
    assert list(map(told, rows(tmp_path / "here"))) == list(map(told, rows(tmp_path / "there")))
    assert same_bits(state(tmp_path / "here"), state(tmp_path / "there"))
    trials = [read_json(path) for path in tmp_path.glob("there/stages/02/candidates/*/result.json")]
    assert sorted(row["cache_fill_forwards"] for row in trials) == [0, 0, 24]
    assert [row["trunk_forwards"] for row in trials] == [0, 0, 0]

    folder = tmp_path / "there/stages/02/candidates"
    saved = {name: read_json(folder / name / "spec.json") for name in candidates}
    fields = CandidateSpec.model_fields
    specs = {name: CandidateSpec(**{key: value for key, value in each.items() if key in fields}) for name, each in saved.items()}
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    again = train_candidates_on_ray(specs, folder)  # none is trained twice
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert {name: row.get("loss") for name, row in again.items()} == {row["name"]: row["loss"] for row in here}


@pytest.mark.usefixtures("local_ray")
def test_a_growth_on_a_trained_model_is_that_of_one_process(tmp_path):
    spec = model_growth(tmp_path, growth={"target_stacks": 2, "stage_steps": 4, "cache_mode": "arrow"}, workers={"n": 2})
    lines = []
    assert run(spec, tmp_path / "there", ON_RAY, say=lines.append) == 0
    assert any("the model is taken as it is" in line for line in lines)
    stages_here(spec, tmp_path / "here")
    for ours, theirs in zip(rows(tmp_path / "here"), rows(tmp_path / "there"), strict=True):
        assert (theirs["steps"], theirs.get("model")) == (ours["steps"], ours.get("model"))
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=AFTER_TRAINING)
    assert same_bits(state(tmp_path / "here", 1), state(tmp_path / "there", 1))


@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path):
    growth = {"target_stacks": 2, "cache_mode": "arrow", "cache_variants": 1}
    spec = growth_spec(
        objective="mlm", block=AHEAD, growth=growth, n_steps=120, lr=1e-3, eval_every=5, checkpoint_every=10, workers={"n": 2}
    )
    out, lines = tmp_path / "killed", []
    killer = threading.Thread(target=kill_a_worker, args=(out / "stages/02/history.jsonl", 3))
    killer.start()
    out.mkdir()
    grow_on_ray(spec, out, lines.append)
    killer.join()
    assert sum(line == "training on 2 worker(s)" for line in lines) == 2
    assert any("died (killed, or out of memory)" in line for line in lines)
    (resumed,) = (int(line.split()[-3]) for line in lines if "stage 2 of 2: going on from step" in line)
    assert resumed >= 10
    stages_here(spec, tmp_path / "one")
    for ours, theirs in zip(rows(tmp_path / "one"), rows(out), strict=True):
        assert theirs["losses"] == pytest.approx(ours["losses"], rel=AFTER_TRAINING)
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=AFTER_TRAINING)


@pytest.mark.usefixtures("local_ray")
def test_a_driver_that_is_killed_goes_on_by_the_same_command(tmp_path):
    spec = growth_spec(n_steps=400, eval_every=20, checkpoint_every=50, growth={"target_stacks": 2})
    config, out = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(spec.to_dict(), sort_keys=False))
    process = start(config, out)
    history = out / "stages/02/history.jsonl"
    while not (history.exists() and len(history.read_text().splitlines()) >= 4):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    kill_with_workers(process)
    assert not (out / "results.json").exists()

    lines = []
    assert run(spec, out, ON_RAY, say=lines.append) == 0
    (resumed,) = (int(line.split()[-3]) for line in lines if "stage 2 of 2: going on from step" in line)
    assert resumed >= 50
    assert resumed % 50 == 0
    stages_here(spec, tmp_path / "undisturbed")
    assert same_bits(state(out), state(tmp_path / "undisturbed"))
    assert [row["losses"] for row in rows(out)] == [row["losses"] for row in rows(tmp_path / "undisturbed")]


def start(config: Path, out: Path) -> subprocess.Popen:
    asked = [sys.executable, "-m", "launch", "progressive", str(config), f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(asked, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
