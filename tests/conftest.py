"""How the tests are shared out."""

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items):
    """With `-n 2 --dist loadgroup`, one process runs the tests that start Ray, one after the other; they take both cores."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
