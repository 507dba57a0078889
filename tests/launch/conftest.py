"""One Ray for all tests that run in this process."""

from pathlib import Path

import pytest
import ray

from launch.cluster import cluster, start_here
from search.training.devices import use_one_thread


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """As the command line and the workers: what is held against theirs to the last bit is summed in their order."""
    use_one_thread()


@pytest.fixture(scope="session")
def local_ray():
    """Two workers' worth of CPUs, whatever the machine has."""
    root = Path(__file__).parents[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))  # workers unpickle what tests define
        start_here(n_cpus=2)
        with cluster():
            yield
        ray.shutdown()
