"""Fixtures of the task tests."""

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="session")
def _cache_home(tmp_path_factory):
    """Text keeps its tokens in the user's cache, if no folder is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)
