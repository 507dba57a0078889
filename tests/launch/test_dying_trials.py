"""Trials that die, leave or hang on Ray: each is its own failure, told in plain words, and the others go on."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from configs.records import read_json
from launch.mad.sweep import execute
from launch.tune import racks
from launch.tune.racks import train_racks_on_ray
from search.jobs.mad import job
from search.runs.isolation import IsolationSpec
from tests.launch.runs import rows_of, tiny
from tests.search import dying
from tests.search.dying import ENDS, last_line
from tests.search.supernets import supernet_spec

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

WORKERS = {"max_concurrent": 1, "max_failures": 0}


def test_each_trial_of_the_suite_comes_to_its_own_end(tmp_path):
    names = ["exit-0", "stop"]  # Tune takes both for an orderly end
    spec = tiny(architectures=dict.fromkeys([*names, "usual"]), lrs=[1e-3], epochs=1, workers=WORKERS)
    assert job.run(spec, tmp_path, execute, dying.make_model) == 1
    rows = {row["architecture"]: row for row in rows_of(tmp_path).values()}
    assert {name: rows[name]["status"] for name in rows} == {**dict.fromkeys(names, "failed"), "usual": "finished"}
    assert all(last_line(rows[name]["error"]).endswith(ENDS[name][1]) for name in names)
    assert read_json(tmp_path / "results.json")["problems"] == {"failed": 2}


def test_racks_that_leave_or_hang_are_told_by_name_and_the_one_that_hangs_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(racks, "_trial", dying.rack_on_ray)
    spec = supernet_spec(workers={"max_failures": 1}).placed("all:linear")
    found = train_racks_on_ray(dict.fromkeys(("hang", "exit-0"), spec), tmp_path, IsolationSpec(trial_timeout=2.0))
    assert last_line(found["hang"]["error"]) == ENDS["hang"][1]
    assert last_line(found["exit-0"]["error"]).endswith(ENDS["exit-0"][1])
    events = [str(path.parent) for path in tmp_path.rglob("events.*")]
    metadata = [EventAccumulator(folder).Reload().summary_metadata["_hparams_/session_end_info"] for folder in set(events)]
    ends = [HParamsPluginData.FromString(each.plugin_data.content).session_end_info.status for each in metadata]
    assert ends == [2, 2]  # STATUS_FAILURE
    assert {path.name: len(path.read_text()) for path in tmp_path.glob("*.tries")} == {"hang.tries": 1, "exit-0.tries": 2}
