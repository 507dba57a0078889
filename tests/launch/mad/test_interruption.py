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

from search.jobs.mad import job
from tests.launch.runs import RAW, numbers, rows_of, tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
GRID = {"lrs": [1e-3, 2e-3, 5e-3, 1e-2], "epochs": 40}


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch", "mad", str(config), f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: subprocess.Popen, log: Path, n_rows: int) -> None:
    deadline = time.monotonic() + 150
    while not (log.exists() and len(log.read_text().splitlines()) >= n_rows):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no trial finished"
        time.sleep(0.05)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_the_same_command_goes_on_and_ends_as_if_undisturbed(tmp_path, sent, status):
    config, out = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({"job": "mad", **RAW, **GRID}))
    process = start(config, out)
    wait_for_rows(process, out / "trials.jsonl", 2)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    if sent == signal.SIGINT:
        assert errors.splitlines()[-1] == "interrupted; the same command goes on from here"
        assert "Traceback" not in errors
    before = rows_of(out)
    assert 2 <= len(before) < 8

    process = start(config, out)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert f"going on: {len(before)} of 8 trials are finished" in printed
    after = rows_of(out)
    assert {key: after[key] for key in before} == before  # not run again

    job.run(tiny(**GRID), tmp_path / "undisturbed")
    undisturbed = rows_of(tmp_path / "undisturbed")
    assert {key: numbers(row) for key, row in after.items()} == {key: numbers(row) for key, row in undisturbed.items()}
    results = [json.loads((folder / "results.json").read_text())["scores"] for folder in (out, tmp_path / "undisturbed")]
    assert results[0] == results[1]
