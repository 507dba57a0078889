"""How the tests are shared out."""

from xdist.scheduler import LoadScopeScheduling

WITH_RAY = ("tests/launch/", "tests/test_readme.py::test_the_first_command_runs")
"""Of processes that share out the tests (`-n 2`), one has all of these, one after the other: a cluster takes all cores."""


class OneCluster(LoadScopeScheduling):
    """Hands out tests one by one, those with Ray as one."""

    def _split_scope(self, nodeid):
        return "with Ray" if nodeid.startswith(WITH_RAY) else nodeid


def pytest_xdist_make_scheduler(config, log):
    """By xdist's own groups (`--dist loadgroup`) this cannot be had: under pytest 9 they are not seen."""
    return OneCluster(config, log)
