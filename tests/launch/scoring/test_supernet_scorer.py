"""Where a search on Ray computes: what the cluster has decides, not where the driver's supernet lies."""

from contextlib import nullcontext

import pytest

from launch.scoring import supernet_scorer as module
from tests.launch.scorers import workers
from tests.search import spaces


@pytest.mark.parametrize(
    ("device", "n_gpus", "place"), [("auto", 2, "cuda"), ("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("cuda", 2, "cuda")]
)
def test_the_cluster_decides_the_device_and_the_precision_is_that_of_the_log(tmp_path, monkeypatch, device, n_gpus, place):
    monkeypatch.setattr(module, "cluster", lambda: nullcontext({"CPU": 2, "GPU": n_gpus}))
    monkeypatch.setattr(module, "TuneScorer", lambda *given: nullcontext(given))
    batches = {"task": spaces.batches()}
    with module.supernet_scorer(spaces.supernet(n_blocks=1), batches, "loss", tmp_path, workers(), device=device) as given:
        make_scorer, *_, asked = given
    assert make_scorer.keywords["device"] == place
    assert make_scorer.keywords["options"]["precision"] == "fp32"
    assert asked == device
