"""A supernet on Ray Train: same numbers as in one process, workers replaced, errors told in a line."""

import os
import threading
from pathlib import Path

import pytest

from configs import ConfigError
from configs.records import read_rows
from launch.train.trainer import train_on_ray
from search.jobs.supernet.job import train_supernet, train_supernet_here
from search.jobs.supernet.spec import SupernetSpec
from search.runs.workers import WorkersError
from search.training.ranks import Ranks
from tests.launch.processes import LOOPBACK, command, descendants, kill_a_worker, servers
from tests.search.ranks import on_ranks
from tests.search.supernets import supernet_spec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Train's own, of a part of Ray that is not used here
]

AFTER_TRAINING = 1e-4
"""Of a loss: float32 sums in another order are some 1e-7 apart, and a few dozen steps make tens of that."""
ONE_ANSWER = 0.15
"""Of an accuracy: what one of some sixteen answers is of it, the most that rounding tips."""


def history(out: Path) -> list[dict[str, float]]:
    return read_rows(out / "history.jsonl")[0]


def quietly(spec, out):
    return train_supernet(spec, out, say=lambda _: None)


@pytest.mark.parametrize("parallel", ["data", "fsdp"])
def test_two_workers_are_one_process_and_listen_on_loopback_alone(tmp_path, parallel):
    """Rates at which AdamW does not make a step of what is rounding alone."""
    spec = supernet_spec(lr=1e-3, n_steps=20, debug=True, workers={"n": 2}, parallel=parallel)
    lines, addresses = [], []

    def say(line):
        lines.append(line)
        if line.startswith("training on") and Path("/proc/net/tcp").exists():
            workers = [pid for pid in descendants(os.getpid()) if b"RayTrainWorker" in command(pid)]
            assert len(workers) == 2
            addresses.extend(address for pid in workers for address, _ in servers(pid))

    here, there = quietly(spec, tmp_path / "here"), train_on_ray(spec, tmp_path / "there", say)
    assert set(addresses) <= LOOPBACK
    assert there["counts"] == here["counts"]
    for ours, theirs in zip(history(tmp_path / "here"), history(tmp_path / "there"), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            tolerance = {"abs": ONE_ANSWER, "rel": 0} if "accuracy" in name else {"rel": AFTER_TRAINING}
            assert ours[name] == pytest.approx(value, **tolerance), name
    assert "training on 2 worker(s)" in lines
    assert any(line.startswith("step 20 of 20") for line in lines)


def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path, capsys):
    spec = supernet_spec(n_steps=240, eval_every=10, checkpoint_every=15, workers={"n": 2})
    out = tmp_path / "killed"
    killer = threading.Thread(target=kill_a_worker, args=(out / "history.jsonl", 5))
    killer.start()
    train_on_ray(spec, out)
    killer.join()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line == "training on 2 worker(s)" for line in lines) == 2
    assert any("died (killed, or out of memory)" in line for line in lines)
    (resumed,) = (int(line.split()[4]) for line in lines if line.startswith("going on from step"))
    assert resumed >= 45
    (tmp_path / "undisturbed").mkdir()
    on_ranks(train_as_rank, 2, tmp_path / "ranks", spec.to_dict(), tmp_path / "undisturbed")
    assert (out / "history.jsonl").read_text() == (tmp_path / "undisturbed/history.jsonl").read_text()


def train_as_rank(raw, out):
    train_supernet_here(SupernetSpec.model_validate(raw), out, lambda _: None, ranks=Ranks())


def test_a_worker_that_raises_is_told_in_a_line(tmp_path):
    (tmp_path / "checkpoint.safetensors").mkdir()  # in the way
    with pytest.raises(WorkersError) as raised:
        train_on_ray(supernet_spec(workers={"max_failures": 0}), tmp_path)
    told = str(raised.value)
    assert "training failed: worker 0: OSError: " in told
    assert "checkpoint.safetensors" in told
    assert len(told.splitlines()) == 1
    assert "Traceback" in (tmp_path / "errors.txt").read_text()


def test_what_a_user_can_cause_is_told_as_in_one_process(tmp_path):
    spec = supernet_spec(teacher={"source": str(tmp_path / "nothing")}, workers={"n": 2})
    with pytest.raises(ConfigError) as here:
        quietly(spec, tmp_path / "here")
    with pytest.raises(ConfigError) as there:
        train_on_ray(spec, tmp_path / "there")
    assert str(here.value) == str(there.value)
    assert not (tmp_path / "there").exists()


def test_more_workers_than_the_cluster_has_are_an_error_not_a_wait(tmp_path):
    with pytest.raises(ConfigError, match=r"workers\.n: 3 workers of 1 CPU\(s\) each, but the cluster has 2 in all"):
        train_on_ray(supernet_spec(workers={"n": 3}), tmp_path)
