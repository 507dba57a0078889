"""What a cluster that is joined is given: the project without its results and data, and the folder of the driver."""

from pathlib import Path

import pytest

from launch import cluster as module
from launch.cluster import DRIVERS_FOLDER, cluster, work_where_the_driver_does


def test_workers_of_a_joined_cluster_look_for_relative_paths_where_the_driver_does(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name, stand_in in {
        "is_initialized": lambda: False,
        "init": lambda **keys: given.update(keys),
        "cluster_resources": lambda: {"CPU": 2.0},
        "shutdown": lambda: None,
    }.items():
        monkeypatch.setattr(module.ray, name, stand_in)
    monkeypatch.chdir(tmp_path)
    with cluster() as resources:
        assert resources == {"CPU": 2.0}
    project = given["runtime_env"]
    assert project["working_dir"] == str(Path(module.__file__).parents[1])
    assert {"/data", "/runs"} <= set(project["excludes"])
    monkeypatch.chdir("/")  # as a worker, elsewhere
    for name, value in project["env_vars"].items():
        monkeypatch.setenv(name, value)
    work_where_the_driver_does()
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("folder", [None, "/there/is/none"])
def test_a_worker_without_the_drivers_folder_stays_where_it_is(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    if folder is None:
        monkeypatch.delenv(DRIVERS_FOLDER, raising=False)
    else:
        monkeypatch.setenv(DRIVERS_FOLDER, folder)
    work_where_the_driver_does()
    assert Path.cwd() == tmp_path
