"""A placement search: what is no number has no place in it, and its importance is of what the budget counts."""

import json
import math
from contextlib import contextmanager

import numpy as np
import pytest

from configs import ConfigError
from search.budget import Budget
from search.evaluation.evaluator import Evaluator
from search.evaluation.score_log import ScoreLog
from search.jobs.in_process import HERE
from search.jobs.placement import job
from search.jobs.placement.budget_search import counted_names
from search.jobs.placement.spec import PlacementSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.errors import RunError
from search.runs.workers import WorkersError
from tests.search.cases import FAR_TOO_HIGH
from tests.search.landscapes import space
from tests.search.supernets import supernet_spec, train_into


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("supernet")
    train_into(out, supernet_spec(n_steps=2))
    return out


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    out = tmp_path_factory.mktemp("diverged")
    train_into(out, supernet_spec(lr=FAR_TOO_HIGH, n_steps=8))
    return out


@pytest.fixture
def search(trained, tmp_path, monkeypatch):
    """Runs the job on a scorer that is a function of the placement; the exit status, and what is in `placements.json`."""

    def run(score, *, n_batches=4, **keys):
        def scorer(placements, batches):
            noise = np.linspace(0.0, 0.1, n_batches)[batches.start : batches.stop]
            return {"recall": np.array([score(each) + noise for each in placements])}

        @contextmanager
        def opened(spec, supernet, trained_as, out, backend):
            del supernet, trained_as, backend
            log = ScoreLog(out / "scores.jsonl")
            yield Evaluator(scorer, n_batches=n_batches, shares={"recall": 1.0}, key="key", log=log, race=spec.race)

        monkeypatch.setattr(job, "open_evaluator", opened)
        spec = PlacementSpec(**{"supernet": str(trained), "budgets": [1], "n_batches": n_batches, "batch_size": 4, **keys})
        status = job.run(spec, tmp_path / "out", HERE)
        return status, json.loads((tmp_path / "out" / "placements.json").read_text(encoding="utf-8"))

    return run


def worth(placement):
    return sum({"attention": 0.5, "gdn": 0.3, "linear": 0.1}[name] for name in placement)


def but(poison, value):
    return lambda placement: value if poison(placement) else worth(placement)


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_rivals_and_neighbours_without_a_finite_score_are_told_as_such(search, value, capsys):
    status, found = search(but(lambda placement: "linear" in placement, value), rivals={"cheap": "all:linear"})
    (result,) = found["budgets"]
    assert status == 0
    assert sorted(result["best"]["placement"]) == ["attention", "gdn"]
    assert result["rivals"]["cheap"]["score"] is result["rivals"]["cheap"]["difference"] is None
    assert None in result["importance"]["attention"].values()  # where linear takes the place of the attention
    told = capsys.readouterr().out
    assert "not finite" in told
    assert "inf" not in told.replace("not finite", "")
    assert "nan" not in told


def test_where_nothing_is_finite_that_is_said_and_no_winner_is_named(search, tmp_path):
    with pytest.raises(
        RunError, match=r"attention = 1: none of the \d+ candidate\(s\) scored within the budget has a finite score"
    ):
        search(lambda _: math.nan)
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_budget_without_a_winner_is_told_beside_those_that_have_one(search, capsys):
    status, found = search(but(lambda placement: placement.count("attention") == 2, math.nan), budgets=[1, 2])
    assert status == 1
    assert [result["text"] for result in found["budgets"]] == ["attention = 1"]
    assert found["unmet"][0].startswith("attention = 2: none of the")
    assert found["unmet"][0] in capsys.readouterr().out


def test_one_batch_has_no_error(search, tmp_path, capsys):
    _, found = search(worth, n_batches=1)
    (result,) = found["budgets"]
    for scored in (result["best"], *result["rivals"].values()):
        assert scored["standard_error"] is scored["difference_error"] is None
    told = capsys.readouterr().out
    assert "±" not in told
    assert "inf" not in told
    assert "Infinity" not in (tmp_path / "out" / "placements.json").read_text(encoding="utf-8")


def test_the_gain_of_what_the_budget_counts_is_told(search, capsys):
    budgets = [{"attention": 1, "context": 4}, {"gdn": 1, "linear": 1}]
    _, found = search(worth, budgets=budgets, strategy="random")
    attention, both = (result["importance"] for result in found["budgets"])
    assert list(attention) == ["attention"]
    assert list(both) == ["gdn", "linear"]
    assert set(attention["attention"]) == {"0", "1"}
    assert all(gain > 0 for gain in attention["attention"].values())
    assert all(gain != 0 for gains in both.values() for gain in gains.values())
    told = capsys.readouterr().out
    for name in ("attention", "gdn", "linear"):
        assert f"gain of {name} in each layer" in told


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"attention": 1, "context": 1}, ("attention",)),  # dearer by bytes is then what keeps a state
        ({"linear": ">=1", "context": 1}, ("linear",)),
        ({"gdn": 1, "linear": 2}, ("gdn", "linear")),
        ({"kv_bytes": "90%", "attention": "<=3"}, ("attention",)),
        ({"kv_bytes": "90%"}, ("attention",)),
        ({"state_bytes": 1e6}, ("gdn",)),
        ({"context": 4096}, ("attention",)),
    ],
)
def test_what_a_budget_counts(value, names):
    mixers = ("attention", "gdn", "linear")
    assert counted_names(Budget.of(value, space(4, mixers))) == names


def test_a_supernet_that_diverged_is_refused_by_whoever_wants_its_weights(diverged, tmp_path):
    told = r"{}: .*the supernet diverged at step 4"
    with pytest.raises(ConfigError, match=told.format("supernet")):
        job.run(PlacementSpec(supernet=str(diverged), budgets=[1], n_batches=2, batch_size=4), tmp_path / "out", HERE)
    for keys, key in (
        ({"initialise_from": str(diverged)}, "initialise_from"),
        ({"teacher": {"source": str(diverged)}}, r"teacher\.source"),
    ):
        with pytest.raises(ConfigError, match=told.format(key)):
            train_into(tmp_path / "next", supernet_spec(**keys))
    with pytest.raises(ConfigError, match="the supernet diverged at step 4"):
        load_supernet(diverged)


def test_workers_that_fail_are_no_budget_without_a_winner(search):
    def dying(_):
        raise WorkersError("evaluation workers do not start")

    with pytest.raises(WorkersError, match="evaluation workers do not start"):
        search(dying)


def test_a_cost_of_ones_own_is_kept_shown_and_part_of_the_run(search, tmp_path, capsys):
    path = tmp_path / "energy.json"

    def write(number):
        numbers = {"attention": number, "gdn": 1, "linear": 2}
        path.write_text(json.dumps({"name": "energy", "unit": "mJ", "layers": {"*": numbers}}))

    def run():
        return search(lambda placement: placement.count("attention"), budgets=[{"energy": "<=5"}], cost_tables=[str(path)])

    write(3)
    status, found = run()
    assert status == 0
    assert found["units"] == {"energy": "mJ"}
    assert found["cost_axis"] == ["energy", "energy, mJ"]
    (budget,) = found["budgets"]
    assert budget["text"] == "energy <= 5 mJ"
    assert budget["best"]["cost"]["energy"] <= 5
    assert budget["best"]["placement"].count("attention") == 1
    assert "energy, mJ" in capsys.readouterr().out
    assert run()[1]["budgets"][0]["best"] == budget["best"]
    write(4)
    with pytest.raises(ConfigError, match=r"cost_tables changed"):
        run()
