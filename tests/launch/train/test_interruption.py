"""A supernet on Ray Train whose driver is interrupted, then started again by the same command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch.train.trainer import train_on_ray
from search.jobs.supernet.job import train_supernet
from tests.search.supernets import supernet_spec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Train's own, of a part of Ray that is not used here
]

ROOT = Path(__file__).parents[3]


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch", "supernet", str(config), f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: subprocess.Popen, history: Path, n_rows: int) -> None:
    while not (history.exists() and len(history.read_text().splitlines()) >= n_rows):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.usefixtures("local_ray")
def test_the_same_command_goes_on_and_ends_as_if_undisturbed(tmp_path):
    """Interrupted in a process of its own; here, on another cluster, it ends."""
    spec = supernet_spec(n_steps=500, eval_every=20, checkpoint_every=50)
    config, out = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(spec.to_dict(), sort_keys=False))
    process = start(config, out)
    wait_for_rows(process, out / "history.jsonl", 4)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "stopping after the step under way; once more to stop at once" in printed

    lines = []
    train_on_ray(spec, out, lines.append)
    (resumed,) = (int(line.split()[4]) for line in lines if line.startswith("going on from step"))
    assert resumed >= 80
    train_supernet(spec, tmp_path / "undisturbed", say=lambda _: None)
    assert (out / "history.jsonl").read_text() == (tmp_path / "undisturbed/history.jsonl").read_text()
