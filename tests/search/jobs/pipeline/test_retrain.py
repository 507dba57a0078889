"""Racks trained one after the other: divergence is a failure, tests are kept, a long run is not silent."""

import itertools
import math

import pytest

from search.jobs import in_process as module
from search.jobs.in_process import HERE, RateLimitedLog
from search.jobs.pipeline import retrain
from search.jobs.pipeline.retrain import run_name, run_spec, train_placements
from search.jobs.pipeline.spec import RetrainSpec
from search.jobs.table import job_run
from tests.search.cases import FAR_TOO_HIGH
from tests.search.supernets import supernet_spec, train_into

GDN = ("gdn", "gdn")
DIVERGES = {"lr": FAR_TOO_HIGH, "n_steps": 8}


def test_a_supernet_that_diverges_says_so_each_time_and_fails(tmp_path, capsys):
    spec, lines = supernet_spec(**DIVERGES), []
    assert job_run("supernet")(spec, tmp_path, HERE) == 1
    assert "diverged: at step 4" in capsys.readouterr().out
    train_into(tmp_path, spec, lines)
    assert lines[-1].startswith("diverged: at step 4")


def test_a_rack_that_diverges_is_a_failure_and_the_others_go_on(tmp_path, capsys):
    runs = {"wild": supernet_spec(**DIVERGES).placed(GDN), "tame": supernet_spec(n_steps=4).placed(GDN)}
    for _ in range(2):
        found = HERE.train_racks(runs, tmp_path)
        assert list(found["wild"]) == ["error"]
        assert found["wild"]["error"].startswith("diverged: at step 4")
        assert found["tame"]["status"] == "finished"
        assert "[1/2] wild: failed: diverged: at step 4" in capsys.readouterr().out


def test_a_placement_whose_rack_diverges_has_an_error_and_no_loss(tmp_path):
    (trained,) = train_placements(supernet_spec(**DIVERGES), RetrainSpec(), [GDN], tmp_path, HERE).values()
    assert trained.error.startswith("diverged")
    assert trained.losses == ()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_rack_without_a_finite_test_loss_is_a_failure(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(retrain, "_measured", lambda *_: (loss, {"recall": 0.0, "copying": 0.0}))
    (trained,) = train_placements(supernet_spec(n_steps=2), RetrainSpec(), [GDN], tmp_path, HERE).values()
    assert trained.error == "seed 0: the test loss is no finite number"
    assert trained.losses == ()


def test_the_test_of_a_rack_is_kept_and_made_anew_where_it_is_asked_otherwise(tmp_path):
    base, asked = supernet_spec(n_steps=4), RetrainSpec(n_test_batches=1, test_batch_size=4)
    first = train_placements(base, asked, [GDN], tmp_path, HERE)
    (tmp_path / run_name(GDN, run_spec(base, asked, GDN, 0)) / "test.json").stat()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrain, "load_supernet", lambda *_: pytest.fail("tested again"))
        assert train_placements(base, asked, [GDN], tmp_path, HERE) == first
    more = RetrainSpec(n_test_batches=2, test_batch_size=4)
    assert train_placements(base, more, [GDN], tmp_path, HERE)[GDN].losses != first[GDN].losses


def test_a_rack_says_a_line_now_and_then(monkeypatch):
    times = itertools.chain([0.0], range(10, 100, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    lines = []
    say = RateLimitedLog("all-linear", lines.append)
    for step in range(10, 100, 10):
        say(f"step {step}")
    assert lines == ["all-linear: step 30", "all-linear: step 60", "all-linear: step 90"]
