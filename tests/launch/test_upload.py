"""What travels to a cluster: neither what the ignore files name, nor more than Ray takes, and then the largest are named."""

import os
import re
import subprocess
import sys

import pytest

from configs import ConfigError
from launch import cluster
from launch.upload import PROJECT, SUBMIT_LIMIT, check_upload


def fill(folder, sizes):
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)  # a file of holes: it takes no room


def test_what_the_ignore_files_name_stays_behind(tmp_path):
    fill(tmp_path, {"code.py": 10, "runs/best/weights": 2**40, "data/text": 2**40, "notes.tmp": 2**40, ".venv/torch": 2**40})
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    (tmp_path / ".rayignore").write_text("/runs\n/data\n")
    ignore_files = sum((tmp_path / name).stat().st_size for name in (".gitignore", ".rayignore"))
    assert check_upload(tmp_path, ["/.venv"]) == 10 + ignore_files


def test_too_much_is_refused_and_the_largest_are_named(tmp_path):
    fill(tmp_path, {"results/a": 60 * 2**20, "results/b": 50 * 2**20, **{f"code/{number}.py": number for number in range(9)}})
    with pytest.raises(ConfigError) as refused:
        check_upload(tmp_path)
    assert "110.0 MiB of files would travel to the cluster, and Ray takes less than 100.0 MiB" in str(refused.value)
    assert "the largest: results/a (60.0 MiB), results/b (50.0 MiB), code/8.py" in str(refused.value)
    assert str(tmp_path / ".rayignore") in str(refused.value)
    (tmp_path / ".rayignore").write_text("/results\n")
    assert check_upload(tmp_path) < 100


def test_results_and_data_of_this_project_stay_behind(tmp_path):
    (tmp_path / ".rayignore").write_text((PROJECT / ".rayignore").read_text())
    kept = (tmp_path / ".rayignore").stat().st_size
    fill(tmp_path, {"runs/one/weights": 2**40, "data/text": 2**40, ".git/objects/pack": 2**40, ".venv/bin/python": 2**40})
    assert check_upload(tmp_path) == kept
    assert check_upload() < SUBMIT_LIMIT


def test_a_driver_that_joins_a_cluster_looks_before_it_uploads(tmp_path, monkeypatch):
    fill(tmp_path, {"results/a": 600 * 2**20})
    monkeypatch.setattr(cluster, "PROJECT", tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)  # of the Ray that other tests go on with
    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("was not looked at before"))
    with pytest.raises(ConfigError, match=r"the largest: results/a \(600\.0 MiB\)"), cluster.cluster():
        pass


def test_the_command_says_how_much_it_is():
    done = subprocess.run([sys.executable, "-m", "launch.upload"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert re.search(r": \d+\.\d MiB of files travel; Ray takes less than 100\.0 MiB\n$", done.stdout)
    assert not done.stderr
