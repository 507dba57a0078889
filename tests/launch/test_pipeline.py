"""The pipeline on Ray gives what it gives in one process."""

import json

import pytest

from configs.load import validate
from launch.backend import ON_RAY
from search.backend import HERE
from search.pipeline.job import run
from search.pipeline.spec import PipelineSpec
from tests.search.pipelines import PIPELINE, raw

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


def rows_of(out):
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_the_pipeline_on_ray_finds_and_trains_the_same(local_ray, tmp_path):
    del local_ray
    spec = validate(PipelineSpec, raw(PIPELINE), "test")
    assert run(spec, tmp_path / "here", HERE) == 0
    assert run(spec, tmp_path / "ray", ON_RAY) == 0
    here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "ray")
    assert [row["text"] for row in here] == [row["text"] for row in there]
    for ours, theirs in zip(here, there, strict=True):
        assert ours["losses"] == theirs["losses"]
        assert ours["supernet_score"] == pytest.approx(theirs["supernet_score"], rel=1e-5)
