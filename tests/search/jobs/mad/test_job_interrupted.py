"""The MAD job after an interrupt, a kill, a torn line: it goes on to the same results."""

import os
import signal

import pytest

from search.jobs.mad import job, run_trials
from search.jobs.mad.spec import MadSpec
from search.runs.run_folder import TrialLog
from search.training import loop
from tests.search.cases import failing, mad_spec, results_in, rows_in, timeless
from tests.search.ranks import started


@pytest.mark.parametrize("stopped_in", ["training", "between"])
@pytest.mark.parametrize("packing", ["never", "always"])
def test_an_interrupted_run_goes_on_to_the_same_results(tmp_path, monkeypatch, stopped_in, packing):
    spec = mad_spec(seeds=[0, 1], epochs=4, packing=packing, pack_size=2)
    assert job.run(spec, tmp_path / "whole") == 0
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        if stopped_in == "training":
            rows_seen = []

            def interrupt(self, key, label, row, n_steps):  # noqa: ARG001 - what is replaced
                rows_seen.append((key, row["step"]))
                if len({key for key, _ in rows_seen}) >= 3 and row["step"] == 6:
                    raise KeyboardInterrupt

            patch.setattr(job.Progress, "moved", interrupt)
        else:
            third = [single.spec.fingerprint() for single in spec.trials()][2]
            run, _ = failing(lambda single: single.spec.fingerprint() == third, KeyboardInterrupt)
            patch.setattr(run_trials, "run_trials", run)
        with pytest.raises(KeyboardInterrupt):
            job.run(spec, tmp_path / "cut")
    done = {row["key"] for row in rows_in(tmp_path / "cut")}
    assert len(done) == 2
    run, asked = failing(lambda _: False)
    monkeypatch.setattr(run_trials, "run_trials", run)
    assert job.run(spec, tmp_path / "cut") == 0
    assert len(asked) == 2
    assert not set(asked) & done
    assert results_in(tmp_path / "cut") == results_in(tmp_path / "whole")
    assert timeless(rows_in(tmp_path / "cut")) == timeless(rows_in(tmp_path / "whole"))
    assert not list((tmp_path / "cut").rglob("*.checkpoint.*"))


def run_and_be_killed(raw, out):
    """In a process of its own, in the middle of the second trial."""

    def moved(self, key, label, row, n_steps):  # noqa: ARG001 - what is replaced
        if (out / "trials.jsonl").exists() and len(rows_in(out)) == 1 and row["step"] >= 12:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(job.Progress, "moved", moved)
        job.run(MadSpec(**raw), out)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_results(tmp_path):
    """SIGKILL in the middle of a trial, from outside."""
    spec = mad_spec(epochs=12, weight_decays=[0.0, 0.1])
    job.run(spec, tmp_path / "whole")
    killed = started(run_and_be_killed, spec.to_dict(), tmp_path / "cut")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(rows_in(tmp_path / "cut")) == 1
    assert list((tmp_path / "cut").rglob("*.checkpoint.*"))
    assert job.run(spec, tmp_path / "cut") == 0
    assert results_in(tmp_path / "cut") == results_in(tmp_path / "whole")


def test_a_torn_last_line_is_dropped_with_a_notice_and_its_trial_runs_again(tmp_path, monkeypatch, capsys):
    spec = mad_spec()
    job.run(spec, tmp_path)
    log = tmp_path / "trials.jsonl"
    before, whole = list(TrialLog(log).rows.values()), log.read_text()
    log.write_text(whole[:-40])
    run, asked = failing(lambda _: False)
    monkeypatch.setattr(run_trials, "run_trials", run)
    capsys.readouterr()
    assert job.run(spec, tmp_path) == 0
    assert "1 damaged line(s) were dropped; those trials run again" in " ".join(capsys.readouterr().out.split())
    assert asked == [spec.trials()[1].spec.fingerprint()]
    assert timeless(TrialLog(log).rows.values()) == timeless(before)
