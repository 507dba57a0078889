"""`load_model` of a conversion: the best distilled rack, the one asked for, the model itself, and the folders below."""

import re
import shutil

import pytest
import torch

from configs import ConfigError
from configs.records import read_json, write_json
from models import Rack
from models.huggingface.importing import import_rack
from search import load_model
from search.jobs.hybridize import job
from search.jobs.in_process import HERE
from search.jobs.supernet.weights import load_supernet
from tests.search.jobs.hybridize.cases import spec


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A conversion whose supernet was trained, with two racks a placement."""
    folder = tmp_path_factory.mktemp("hybridize")
    given = {"search": {"budgets": [1, 2], "rivals": {"last": "window, gdn, attention"}}, "supernet": {"n_steps": 6, "lr": 1e-2}}
    assert job.run(spec(folder, **given, distil={"seeds": [0, 1]}), folder / "run", HERE) == 0
    return folder


def same(first, second):
    assert isinstance(first, Rack)
    assert not first.training
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def distilled(out):
    return [row for row in read_json(out / "results.json")["rows"] if row.get("folders")]


def test_the_best_is_the_distilled_rack_with_the_lowest_kl(finished):
    out = finished / "run"
    row = min(distilled(out), key=lambda row: row["kl_distilled"])
    assert len(row["folders"]) == len(row["kls"]) == 2
    folder = out / row["folders"][row["kls"].index(min(row["kls"]))]
    assert same(load_model(out), load_supernet(folder))
    assert same(load_model(folder), load_supernet(folder))


def test_a_placement_is_its_distilled_rack_or_is_extracted_from_the_supernet(finished):
    out = finished / "run"
    assert len(distilled(out)) == 2
    for row in distilled(out):
        folder = out / row["folders"][row["kls"].index(min(row["kls"]))]
        assert same(load_model(out, placement=row["text"]), load_supernet(folder))
    searched, start = load_supernet(out / "supernet"), load_supernet(out / "start")
    loaded = load_model(out, placement="all:gdn")
    assert same(loaded, searched.extract("all:gdn"))
    assert not same(loaded, start.extract("all:gdn"))
    with pytest.raises(ConfigError, match="no slot has 'gnd'; did you mean 'gdn'"):
        load_model(out, placement="all:gnd")


def test_else_it_is_the_model_itself(finished):
    _, model = import_rack(finished / "model")
    assert same(load_model(finished / "run", best=False), model)
    assert same(load_model(finished / "run/start"), model)


def test_the_search_below_is_what_was_found(finished):
    found = read_json(finished / "run/placement/placements.json")["budgets"][-1]["best"]["placement"]
    assert same(load_model(finished / "run/placement"), load_supernet(finished / "run/supernet").extract(found))


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """A conversion without a supernet of its own, in which layers can only be skipped."""
    folder = tmp_path_factory.mktemp("skips")
    assert job.run(spec(folder, choices={"skip": None}, search={"rivals": {}}), folder / "run", HERE) == 0
    return folder / "run"


def test_what_had_nothing_to_learn_is_extracted_from_the_start(unchanged):
    (row,) = [row for row in read_json(unchanged / "results.json")["rows"] if row.get("kl_distilled") is not None]
    assert row["folders"] == []
    start = load_supernet(unchanged / "start")
    assert same(load_model(unchanged), start.extract(row["placement"]))
    assert same(load_model(unchanged, placement="all:skip"), start.extract("all:skip"))


def test_without_distilled_racks_it_is_what_the_search_found(unchanged, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(unchanged, out)
    results = read_json(out / "results.json")
    for row in results["rows"]:
        row.pop("kl_distilled", None)
    write_json(out / "results.json", results)
    found = read_json(out / "placement/placements.json")["budgets"][-1]["best"]["placement"]
    assert same(load_model(out), load_supernet(out / "start").extract(found))
    assert same(load_model(out / "placement"), load_model(out))


def test_of_one_that_is_not_finished_it_says_so(unchanged, tmp_path):
    shutil.copytree(unchanged, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    with pytest.raises(ConfigError, match=re.escape("the run is not finished (results.json is missing)")):
        load_model(tmp_path / "run")
