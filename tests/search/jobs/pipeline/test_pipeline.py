"""The jobs pipeline, placement and validate: what they leave, that they go on, and what they refuse."""

import argparse
import math
import re
from dataclasses import replace

import pytest
import yaml

from configs import ConfigError
from configs.load import validate
from configs.records import read_json
from models import placement_text
from search.cli.main import add_jobs, main
from search.evaluation.evaluator import Evaluator
from search.evaluation.score import Score
from search.jobs.in_process import HERE
from search.jobs.pipeline import job as pipeline
from search.jobs.pipeline.retrain import RetrainedRack
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement import job as placement
from search.jobs.placement.results import pareto_front
from search.jobs.placement.spec import PlacementSpec
from search.jobs.validate import job as validation
from search.jobs.validate.figure import save_picture
from search.jobs.validate.report import print_truth
from search.jobs.validate.spec import ValidateSpec
from search.jobs.validate.truth import StrategyChoice, Truth
from search.runs.errors import RunError
from tests.search.pipelines import PIPELINE, SEARCH, VALIDATE, raw


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("pipeline")
    assert pipeline.run(validate(PipelineSpec, raw(PIPELINE), "test"), out, HERE) == 0
    return out


def results(out, name="results.json"):
    return read_json(out / name)


def test_a_pipeline_compares_what_was_found_with_its_rivals(finished):
    rows = results(finished)["rows"]
    assert [(row["budget"], row["name"]) for row in rows] == [
        ("attention = 1", "search"),
        ("attention = 1", "interleave"),
        ("attention = 2", "search"),
        ("attention = 2", "interleave"),
        ("outside", "all-cheap"),
        ("outside", "all-attention"),
    ]
    for row in rows[:4]:
        assert row["placement"].count("attention") == int(row["budget"][-1])
    for row in rows:
        assert math.isfinite(row["loss"])
        assert row["error"] is None
        assert len(row["losses"]) == 2
    assert (finished / "pipeline.png").read_bytes()[:4] == b"\x89PNG"


def test_placements_are_told_with_scores_costs_and_rivals(finished):
    found = results(finished, "placement/placements.json")
    assert [result["text"] for result in found["budgets"]] == ["attention = 1", "attention = 2"]
    for result in found["budgets"]:
        best = result["best"]
        assert best["text"] == placement_text(tuple(best["placement"]))
        assert best["is_admitted"]
        assert best["difference"] == 0
        assert best["cost"]["kv_bytes"] > 0
        assert set(result["rivals"]) == {"interleave", "all-cheap", "all-attention"}
        assert not result["rivals"]["all-cheap"]["is_admitted"]
        assert {name: list(gains) for name, gains in result["importance"].items()} == {"attention": ["0", "1", "2"]}
        assert result["n_evaluations"] == result["n_seen"]
        rival = result["rivals"]["interleave"]
        assert rival["difference"] == pytest.approx(rival["score"] - best["score"])
    costs = [cost for cost, _ in found["front"]]
    assert costs == sorted(costs)
    for picture in ("placements.png", "search.png"):
        assert (finished / "placement" / picture).read_bytes()[:4] == b"\x89PNG"


def test_the_same_command_trains_and_scores_nothing_again(finished, capsys, monkeypatch):
    before = results(finished)
    n_lines = len((finished / "placement" / "scores.jsonl").read_text(encoding="utf-8").splitlines())
    monkeypatch.setattr("search.training.loop.train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("search.evaluation.score_batches.score_batches", lambda *_, **__: pytest.fail("scored"))
    assert pipeline.run(validate(PipelineSpec, raw(PIPELINE), "test"), finished, HERE) == 0
    assert results(finished) == before
    assert len((finished / "placement" / "scores.jsonl").read_text(encoding="utf-8").splitlines()) == n_lines
    assert "finished" in capsys.readouterr().out


def test_a_search_over_a_finished_supernet_finds_the_same(finished, tmp_path):
    spec = validate(PlacementSpec, raw(SEARCH, supernet=str(finished / "supernet")), "test")
    assert placement.run(spec, tmp_path, HERE) == 0
    ours, theirs = (results(out, "placements.json") for out in (tmp_path, finished / "placement"))
    assert [each["best"] for each in ours["budgets"]] == [each["best"] for each in theirs["budgets"]]


def test_a_race_finds_a_placement_within_the_budget(finished, tmp_path):
    changes = {"supernet": str(finished / "supernet"), "race": True, "n_batches": 12, "budgets": [1]}
    assert placement.run(validate(PlacementSpec, raw(SEARCH, **changes), "test"), tmp_path, HERE) == 0
    (result,) = results(tmp_path, "placements.json")["budgets"]
    assert result["best"]["placement"].count("attention") == 1


def test_a_folder_without_a_supernet_is_refused(tmp_path):
    spec = validate(PlacementSpec, raw(SEARCH, supernet=str(tmp_path / "none")), "test")
    with pytest.raises(ConfigError, match="no finished supernet run"):
        placement.run(spec, tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()


def test_beam_width_is_short_for_a_beam_of_that_width():
    spec = validate(PlacementSpec, {"supernet": "x", "budgets": [4], "beam_width": 7}, "test")
    assert (spec.strategy.kind, spec.strategy.width) == ("beam", 7)
    with pytest.raises(ConfigError, match="beam_width: the strategy is random"):
        validate(PlacementSpec, {"supernet": "x", "budgets": [4], "beam_width": 7, "strategy": "random"}, "test")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"attention": 9}, r"placement\.budgets\[0\]: .*attention = 9 .*nearest that can is 3"),
        ({"kv_bytes": 0}, r"placement\.budgets\[0\]: .*kv_bytes <= 0"),
        ({"attention": 1, "pin": {0: "attention", 1: "attention"}}, r"placement\.budgets\[0\]: .*attention = 1 cannot be met"),
        ({"atention": 1}, r"placement\.budgets\[0\]: .*did you mean 'attention'"),
    ],
)
def test_a_budget_that_cannot_be_met_is_one_message_and_status_two(budget, message, tmp_path, capsys):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(raw(PIPELINE, placement=raw(SEARCH, budgets=[budget]))), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_jobs(parser.add_subparsers(dest="job"))
    assert main(parser, "search.jobs.in_process:HERE", ["pipeline", str(path), f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert not (tmp_path / "run").exists()


def test_frozen_parts_are_refused_where_racks_start_from_scratch():
    wrong = raw(PIPELINE)
    wrong["supernet"]["rack"]["stacks"][0]["block"]["mlp"]["lr_scale"] = 0
    with pytest.raises(ConfigError, match=r"supernet\.rack: parts are frozen"):
        validate(PipelineSpec, wrong, "test")


def test_a_race_needs_batches():
    with pytest.raises(ConfigError, match="n_batches: 3 batches are too few for a race"):
        validate(PipelineSpec, raw(PIPELINE, placement=raw(SEARCH, race=True)), "test")


def test_a_missing_table_is_told_before_anything_is_trained(tmp_path):
    wrong = raw(PIPELINE, placement=raw(SEARCH, latency_table="/none/latency.json"))
    with pytest.raises(ConfigError, match=r"/none/latency\.json"):
        pipeline.run(validate(PipelineSpec, wrong, "test"), tmp_path / "run", HERE)
    assert not (tmp_path / "run").exists()


def test_all_mistakes_of_a_search_are_told_at_once():
    wrong = raw(SEARCH, budgets=[{"attention": 9}, 1], rivals={"a": "all:linaer", "b": "interleave"})
    wrong["strategy"], wrong["rivals"]["c"] = ({"kind": "interleave", "rest": rest} for rest in ("nope", " "))
    with pytest.raises(ConfigError) as caught:
        validate(PipelineSpec, raw(PIPELINE, placement=wrong), "test")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, place in zip(lines, ("budgets[0]", "strategy", "rivals.a", "rivals.c"), strict=True):
        assert f"placement.{place}: " in line
    assert "did you mean 'linear'" in lines[2]


def test_a_failed_rack_is_told_and_the_others_are_compared(tmp_path, capsys):
    whole = HERE.train_racks

    def one_fails(runs, out, limits):
        name, *_ = runs
        return {
            name: {"error": "Traceback\nRuntimeError: boom"},
            **whole({key: spec for key, spec in runs.items() if key != name}, out, limits),
        }

    backend = replace(HERE, train_racks=one_fails)
    assert pipeline.run(validate(PipelineSpec, raw(PIPELINE), "test"), tmp_path, backend) == 1
    assert "RuntimeError: boom" in capsys.readouterr().out
    assert sum(row["error"] is not None for row in results(tmp_path)["rows"]) >= 1


def test_validation_trains_every_placement_and_judges_the_strategies(tmp_path, capsys):
    spec = validate(ValidateSpec, raw(VALIDATE), "test")
    assert [placement_text(each) for each in spec.placements()] == [
        "attention, linear*2",
        "linear, attention, linear",
        "linear*2, attention",
    ]
    assert validation.run(spec, tmp_path, HERE) == 0
    found = results(tmp_path)
    assert len(found["kendall_tau"]) == 2
    assert all(-1 <= tau <= 1 for tau in found["kendall_tau"])
    assert min(each["regret"] for each in found["strategies"].values()) >= 0
    assert found["strategies"]["interleave"]["gain"] == 0
    assert "Kendall tau" in capsys.readouterr().out


def test_a_space_with_too_many_placements_is_refused():
    with pytest.raises(ConfigError, match="budget: 3 placements are within it, more than most_placements = 2"):
        validate(ValidateSpec, raw(VALIDATE, most_placements=2), "test")


def test_truth_counts_regret_gain_and_ranks():
    def trained(*losses):
        return RetrainedRack(("a",), losses, {}, 0.0)

    best, middle, worst = (("a", "b"), ("b", "a"), ("b", "b"))
    losses = {best: trained(1.0, 1.2), middle: trained(2.0, 2.2), worst: trained(3.0, 3.4)}
    scores = {best: -0.1, middle: -0.3, worst: -0.2}
    truth = Truth(losses, [scores], [{"beam": StrategyChoice(best, 5), "interleave": StrategyChoice(worst, 1)}])
    assert truth.taus == [pytest.approx(1 / 3)]
    assert truth.tau_between_seeds == 1
    judged = truth.judgements()
    assert judged["beam"].regret == 0
    assert judged["beam"].gain == pytest.approx(2.1)
    assert judged["interleave"].regret == pytest.approx(2.1)


def test_a_validation_whose_supernet_diverged_judges_nobody(tmp_path):
    def diverging(spec, out):
        return {**HERE.train_supernet(spec, out), "status": "diverged", "steps": 3}

    backend = replace(HERE, train_supernet=diverging)
    with pytest.raises(RunError, match="supernet-0: diverged: at step 3"):
        validation.run(validate(ValidateSpec, raw(VALIDATE, supernet_seeds=[0]), "test"), tmp_path, backend)


def test_a_validation_without_a_finite_score_says_so(tmp_path, monkeypatch):
    worthless = Score.of({"recall": [-math.inf]}, {"recall": 1.0})
    monkeypatch.setattr(Evaluator, "__call__", lambda _, placements, keep=None: [worthless] * len(placements))  # noqa: ARG005
    with pytest.raises(RunError, match="supernet-0: none of the 3 placements has a finite score"):
        validation.run(validate(ValidateSpec, raw(VALIDATE, supernet_seeds=[0]), "test"), tmp_path, HERE)


def test_placements_that_all_score_the_same_have_no_order(capsys, tmp_path):
    places = (("a", "b"), ("b", "a"), ("b", "b"))
    losses = {place: RetrainedRack(place, (loss, loss), {}, 0.0) for place, loss in zip(places, (1.0, 2.0, 3.0), strict=True)}
    scores = dict.fromkeys(places[:2], 0.5) | {places[2]: -math.inf}
    choices = {"interleave": StrategyChoice(places[2], 1)}
    truth = Truth(losses, [dict.fromkeys(places, 0.5), scores], [choices, choices])
    assert truth.taus[0] is None
    assert truth.taus[1] is not None
    assert truth.to_dict()["placements"][2]["scores"] == [0.5, None]
    print_truth(truth, validate(ValidateSpec, raw(VALIDATE), "test"), tmp_path)
    save_picture(truth, tmp_path / "validate.png")
    told = capsys.readouterr().out
    assert "none, all are equal" in told
    assert "not finite" in told
    assert "nan" not in told


def test_the_front_is_what_nothing_cheaper_beats():
    assert pareto_front([(2.0, 1.0), (1.0, 0.5), (3.0, 0.9), (2.0, 1.5), (1.0, 0.7)]) == [(1.0, 0.7), (2.0, 1.5)]


def test_other_workers_are_the_same_run_and_another_search_keeps_the_supernet(finished):
    other = raw(PIPELINE, placement=raw(SEARCH, budgets=[1], max_eval_memory=2**28))
    other["supernet"]["workers"] = {"n": 2}
    assert validate(PipelineSpec, {**other, "placement": SEARCH}, "test").fingerprint() == (
        validate(PipelineSpec, raw(PIPELINE), "test").fingerprint()
    )
    assert pipeline.run(validate(PipelineSpec, other, "test"), finished, HERE) == 0
    assert [row["budget"] for row in results(finished)["rows"]].count("attention = 1") == 2
    changed = raw(PIPELINE)
    changed["supernet"]["lr"] = 1e-3
    with pytest.raises(ConfigError, match="supernet changed"):
        pipeline.run(validate(PipelineSpec, changed, "test"), finished, HERE)
