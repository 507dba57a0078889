"""`load_model` gives the rack that a folder stands for, whatever kind of folder it is."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import search
from configs import ConfigError
from configs.load import validate
from configs.records import read_json, write_json
from models import Rack, parse_placement, placement_text
from search import load_model
from search.jobs.in_process import HERE
from search.jobs.pipeline import job as pipeline
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement import job as placement
from search.jobs.placement.spec import PlacementSpec
from search.jobs.progressive.weights import load_rack
from search.jobs.supernet.weights import load_supernet
from search.jobs.validate import job as validation
from search.jobs.validate.spec import ValidateSpec
from tests.models.huggingface.tiny import saved
from tests.search.growths import grow_here, growth_spec
from tests.search.pipelines import PIPELINE, SEARCH, VALIDATE, raw
from tests.search.supernets import BLOCK, MIXERS, supernet_spec, train_into

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A pipeline, with a placement search of its own over the same supernet."""
    out = tmp_path_factory.mktemp("pipeline")
    assert pipeline.run(validate(PipelineSpec, raw(PIPELINE), "test"), out, HERE) == 0
    spec = validate(PlacementSpec, raw(SEARCH, supernet=str(out / "supernet"), budgets=[2, 1]), "test")
    assert placement.run(spec, out / "search", HERE) == 0
    return out


def same(first, second):
    assert isinstance(first, Rack)
    assert not first.training
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_of_a_supernet_it_is_the_main_placement_or_the_one_asked_for(finished):
    supernet = load_supernet(finished / "supernet")
    assert same(load_model(finished / "supernet"), supernet.extract(supernet.main))
    chosen = ("linear", "attention", "linear")
    for text in ("linear, attention, linear", chosen):
        assert same(load_model(str(finished / "supernet"), placement=text), supernet.extract(chosen))
    with pytest.raises(ConfigError, match="has no 'linaer'; did you mean 'linear'"):
        load_model(finished / "supernet", placement=["linaer"] * 3)


def test_of_a_supernet_without_choices_it_is_the_rack(tmp_path):
    train_into(tmp_path, supernet_spec(block={**BLOCK, "mixer": MIXERS["gdn"]}, n_steps=2))
    assert same(load_model(tmp_path), load_supernet(tmp_path))
    with pytest.raises(ConfigError, match="placement: the model there has no choices; leave it out"):
        load_model(tmp_path, placement="all:gdn")


@pytest.mark.parametrize("folder", ["search", "placement"])
def test_of_a_placement_search_it_is_what_was_found_under_the_last_budget(finished, folder):
    supernet = load_supernet(finished / "supernet")
    last = read_json(finished / folder / "placements.json")["budgets"][-1]
    assert last["text"] == f"attention = {1 if folder == 'search' else 2}"
    assert same(load_model(finished / folder), supernet.extract(last["best"]["placement"]))
    assert same(load_model(finished / folder, best=False), supernet.extract(supernet.main))
    assert same(load_model(finished / folder, placement="all:linear"), supernet.extract("all:linear"))


def test_of_a_pipeline_it_is_the_best_rack_that_was_trained_from_scratch_within_a_budget(finished):
    rows = read_json(finished / "results.json")["rows"]
    best = min((row for row in rows if row["budget"] != "outside"), key=lambda row: row["loss"])
    folder = finished / best["folders"][best["losses"].index(min(best["losses"]))]
    assert same(load_model(finished), load_supernet(folder))
    assert same(load_model(folder), load_supernet(folder))
    supernet = load_supernet(finished / "supernet")
    assert same(load_model(finished, best=False), supernet.extract(supernet.main))
    outside = next(row for row in rows if row["name"] == "all-attention")
    folder = finished / outside["folders"][outside["losses"].index(min(outside["losses"]))]
    assert same(load_model(finished, placement="all:attention"), load_supernet(folder))
    every = {placement_text(each) for each in itertools.product(("attention", "linear"), repeat=3)}
    absent = min(every - {row["text"] for row in rows})
    with pytest.raises(ConfigError, match=re.escape(f"no rack of {absent} was trained from scratch there; those were: ")):
        load_model(finished, placement=absent)
    with pytest.raises(ConfigError, match="2 names for 3 searchable slots"):
        load_model(finished, placement="linear*2")


def test_every_row_names_the_folders_of_its_racks(finished, capsys):
    for row in read_json(finished / "results.json")["rows"]:
        assert len(row["folders"]) == len(row["losses"])
        for folder in row["folders"]:
            rack = load_model(finished / folder)
            slots = load_supernet(finished / "supernet").slots
            kinds = {"Attention": "attention", "LinearAttention": "linear"}
            assert parse_placement(row["text"], slots) == tuple(kinds[type(block.mixer).__name__] for block in rack.blocks())
    assert pipeline.run(validate(PipelineSpec, raw(PIPELINE), "test"), finished, HERE) == 0
    told = capsys.readouterr().out.replace("\n", "")
    assert all(
        str(finished / folder) in told for row in read_json(finished / "results.json")["rows"] for folder in row["folders"]
    )
    assert read_json(finished / "search" / "results.json")["supernet"] == str(finished / "supernet")


def test_of_a_validation_it_is_the_placement_with_the_lowest_loss(tmp_path):
    spec = validate(ValidateSpec, raw(VALIDATE, retrain={**VALIDATE["retrain"], "seeds": [0]}), "test")
    assert validation.run(spec, tmp_path, HERE) == 0
    best, *_, worst = read_json(tmp_path / "results.json")["placements"]
    assert same(load_model(tmp_path), load_model(tmp_path / best["folders"][0]))
    assert same(load_model(tmp_path, placement=worst["text"]), load_model(tmp_path / worst["folders"][0]))
    with pytest.raises(ConfigError, match="best=False is for one supernet"):
        load_model(tmp_path, best=False)


GROWTHS = {
    "frozen": {},
    "adapters": {"qlora_enabled": True, "train_stack_lora_with_base": True, "qlora_rank": 2},
    "stored in four bits": {"trunk_strategy": "qlora"},
}


@pytest.mark.parametrize("case", GROWTHS)
def test_of_a_growth_it_is_the_last_stage_and_of_a_stage_its_own(tmp_path, case):
    assert grow_here(growth_spec(growth=GROWTHS[case], rack={"tie_embeddings": True}), tmp_path) == 0
    assert same(load_model(tmp_path), load_rack(tmp_path))
    for number in (1, 2, 3):
        assert same(load_model(tmp_path / "stages" / f"{number:02d}"), load_rack(tmp_path, n_stages=number))
    with pytest.raises(ConfigError, match="placement: the model there has no choices"):
        load_model(tmp_path, placement="all:attention")


def test_of_a_model_of_hugging_face_it_is_the_model(tmp_path):
    model, folder = saved("llama", tmp_path)
    rack, tokens = load_model(folder), torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(rack(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert load_model(folder, dtype="bfloat16").embedding.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="the model there has no choices"):
        load_model(folder, placement="all:attention")


def test_device_and_type_can_be_asked_for(finished):
    rack = load_model(finished / "supernet", device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in rack.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="dtype: unknown type 'bfloat61'; did you mean 'bfloat16'"):
        load_model(finished, dtype="bfloat61")


def test_what_is_no_model_is_told_with_what_there_is(finished, tmp_path):
    with pytest.raises(ConfigError, match="no such folder or file"):
        load_model(tmp_path / "none")
    with pytest.raises(ConfigError, match="no model is there; what can be loaded: a run of supernet, placement, pipeline"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"a trained model is a folder with config.json and safetensors, or a .gguf file"):
        load_model(tmp_path / "notes.txt")
    shutil.copytree(finished, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"the run is not finished \(results.json is missing\)"):
        load_model(tmp_path / "unfinished")
    moved = tmp_path / "moved"
    shutil.copytree(finished / "search", moved)
    tree = validate(PlacementSpec, raw(SEARCH, supernet="runs/gone"), "test")
    (moved / "spec.json").unlink()
    write_json(moved / "spec.json", tree.saved())
    with pytest.raises(ConfigError, match="its supernet, runs/gone, is not there; a path that is not absolute is read from here"):
        load_model(moved)


def test_runs_that_leave_no_rack_are_told_as_such(tmp_path):
    write_json(tmp_path / "spec.json", {"job": "profile"})
    with pytest.raises(ConfigError, match="a run of 'profile' leaves no rack; what can be loaded: "):
        load_model(tmp_path)


def test_loading_draws_nothing(finished, monkeypatch):
    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor if tensor.is_meta else pytest.fail("drawn"))
    before = torch.get_rng_state()
    load_model(finished)
    load_model(finished / "search")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_name_is_there_without_what_it_needs():
    assert "load_model" in search.__all__
    code = "import search, sys; assert 'torch' not in sys.modules; from search import load_model; assert callable(load_model)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
