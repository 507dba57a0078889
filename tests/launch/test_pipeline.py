"""The pipeline on Ray gives what it gives in one process, its supernet to the last bit."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.load import validate
from configs.records import read_json
from launch.backend import ON_RAY
from search.jobs.in_process import HERE
from search.jobs.pipeline.job import run
from search.jobs.pipeline.spec import PipelineSpec
from search.training import checkpoint
from tests.search.pipelines import PIPELINE, raw
from tests.search.supernets import CPU

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


def rows_of(out):
    rows = read_json(out / "results.json")["rows"]
    return [{name: value for name, value in row.items() if name not in ("seconds", "peak_bytes")} for row in rows]


def supernet_of(out):
    """What its training leaves, but for the clock and the machine."""
    own = ("seconds", "peak_bytes", "hardware", "time", "finished_at")
    results = read_json(out / "supernet/results.json")
    weights, _ = checkpoint.read(out / "supernet/weights.safetensors", CPU)
    history = (out / "supernet/history.jsonl").read_text()
    return {name: value for name, value in results.items() if name not in own}, history, weights


def test_the_pipeline_on_ray_finds_and_trains_the_same(local_ray, tmp_path):
    del local_ray
    spec = validate(PipelineSpec, raw(PIPELINE), "test")
    assert run(spec, tmp_path / "here", HERE) == 0
    assert run(spec, tmp_path / "ray", ON_RAY) == 0
    *ours, weights_here = supernet_of(tmp_path / "here")
    *theirs, weights_there = supernet_of(tmp_path / "ray")
    assert ours == theirs
    assert all(torch.equal(weights_here[name], weights_there[name]) for name in weights_here | weights_there)
    events = EventAccumulator(str(tmp_path / "ray/supernet/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [3, 6]
    assert events.Scalars("loss")[-1].value == pytest.approx(theirs[0]["loss"])
    here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "ray")
    assert [row["text"] for row in here] == [row["text"] for row in there]
    for ours, theirs in zip(here, there, strict=True):
        assert ours["losses"] == theirs["losses"]
        assert ours["supernet_score"] == pytest.approx(theirs["supernet_score"], rel=1e-5)
