"""A sweep on Ray that is interrupted or killed, then started again by the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch.mad.sweep import execute
from search.jobs.mad import job
from tests.launch.runs import RAW, numbers, rows_of, tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
GRID = {"lrs": [1e-3, 2e-3, 5e-3, 1e-2], "epochs": 20}  # so that some are left when two have ended


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch", "mad", str(config), f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: subprocess.Popen, log: Path, n_rows: int) -> None:
    while not (log.exists() and len(log.read_text().splitlines()) >= n_rows):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_that_is_interrupted_and_killed_goes_on_and_ends_as_if_undisturbed(tmp_path, capsys):
    config, out = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({"job": "mad", **RAW, **GRID}))
    process = start(config, out)
    wait_for_rows(process, out / "trials.jsonl", 2)
    process.terminate()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "interrupted; the same command goes on from here\n")
    interrupted = rows_of(out)
    assert 2 <= len(interrupted) < 7

    process = start(config, out)
    wait_for_rows(process, out / "trials.jsonl", len(interrupted) + 1)
    process.kill()
    printed, _ = process.communicate()
    assert f"going on: {len(interrupted)} of 8 trials are finished" in printed
    killed = rows_of(out)
    assert {key: killed[key] for key in interrupted} == interrupted  # not run again
    assert len(killed) < 8

    capsys.readouterr()
    assert job.run(tiny(**GRID), out, execute) == 0
    assert f"going on: {len(killed)} of 8 trials are finished" in capsys.readouterr().out
    after = rows_of(out)
    assert {key: after[key] for key in killed} == killed

    job.run(tiny(**GRID), tmp_path / "undisturbed")
    undisturbed = rows_of(tmp_path / "undisturbed")
    assert {key: numbers(row) for key, row in after.items()} == {key: numbers(row) for key, row in undisturbed.items()}
    results = [json.loads((folder / "results.json").read_text())["scores"] for folder in (out, tmp_path / "undisturbed")]
    assert results[0] == results[1]
