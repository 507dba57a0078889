"""How the tests are shared out."""

from xdist.scheduler import LoadScopeScheduling

WITH_RAY = {
    "tests/launch/train/": "Ray Train",
    "tests/launch/": "Ray Tune",
    "tests/test_readme.py::test_the_first_command_runs": "Ray Tune",
}
"""Of processes that share out the tests (`-n 2`), one has all of a group, in one cluster: to start Ray and its workers takes
longer than what is tested. xdist hands out the largest groups first."""


class ClusterGroups(LoadScopeScheduling):
    """Hands out tests one by one, those with Ray in two groups."""

    def _split_scope(self, nodeid):
        return next((group for start, group in WITH_RAY.items() if nodeid.startswith(start)), nodeid)


def pytest_xdist_make_scheduler(config, log):
    """By xdist's own groups (`--dist loadgroup`) this cannot be had: under pytest 9 they are not seen."""
    return ClusterGroups(config, log)
