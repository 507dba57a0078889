"""A worker computes on as many threads as it has whole CPUs reserved."""

import pytest
import torch

from launch.mad import worker as mad_worker
from launch.train import worker as train_worker
from search.runs.workers import WorkersSpec
from tests.search.supernets import supernet_spec


class StopHereError(Exception):
    """So that nothing is trained."""


@pytest.fixture
def threads():
    """The number of threads is as it was afterwards."""
    before = torch.get_num_threads()
    yield torch.get_num_threads
    torch.set_num_threads(before)


def stop(*_, **__):
    raise StopHereError


@pytest.mark.parametrize(("cpus", "n_threads"), [(0.5, 1), (1, 1), (3, 3), (2.5, 2)])
def test_a_worker_of_ray_train(tmp_path, monkeypatch, threads, cpus, n_threads):
    monkeypatch.setattr(train_worker, "work_where_the_driver_does", stop)
    spec = supernet_spec(workers={"cpus": cpus}).to_dict()
    with pytest.raises(StopHereError):
        train_worker.train_worker({"spec": spec, "out": str(tmp_path)})
    assert threads() == n_threads == WorkersSpec(cpus=cpus).n_threads


def test_a_trial_of_the_suite(monkeypatch, threads):
    monkeypatch.setattr(mad_worker, "name_of", stop)
    with pytest.raises(StopHereError):
        mad_worker.run_config({}, settings={}, options={}, n_threads=2, make_model=None, limits=None)
    assert threads() == 2
