"""Where a search on Ray computes, and that what its workers share stays as it is."""

import hashlib
from contextlib import nullcontext

import numpy as np
import pytest
import ray

from launch.scoring import supernet_scorer as module
from launch.scoring.shared_tensors import to_arrays
from models import RackSpec, Supernet
from tests.launch.scorers import workers
from tests.models.cases import CHANNEL_MIXER_CASES, MIXER_CASES
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


def digest(arrays):
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, (array, _) in arrays.items()}


def shared(supernet, batches):
    """What lies in the object store, in this process."""
    pairs = {("task", number): batch for number, batch in enumerate(batches)}
    return {
        "weights": to_arrays(supernet.rack.state_dict()),
        "inputs": to_arrays({key: inputs for key, (inputs, _) in pairs.items()}),
        "targets": to_arrays({key: targets for key, (_, targets) in pairs.items()}),
    }


@pytest.mark.parametrize(
    "block",
    [*({"mixer": case} for case in MIXER_CASES.values()), *({"mlp": case} for case in CHANNEL_MIXER_CASES.values())],
    ids=str,
)
def test_no_part_writes_to_the_weights_and_batches_that_all_workers_share(block):
    """Tensors over arrays of the object store can be written to, and every process of the machine would read it."""
    choice = {"mixer": {"kind": "stochastic", "main": "delta", "mixers": spaces.MIXERS}}
    rack = RackSpec(d_model=16, vocab_size=32, max_length=16, stacks=[{"blocks": [block, choice, block]}])
    supernet, batches = Supernet(rack), spaces.batches()
    arrays = shared(supernet, batches)
    before = {name: digest(part) for name, part in arrays.items()}
    options = {"metric": "kl", "max_eval_memory": 2**30, "precision": "fp32"}
    score = module._make_scorer(rack.to_dict(), **arrays, device="cpu", options=options)
    assert np.isfinite(score(spaces.placements(supernet.slots, 2), range(len(batches)))["task"]).all()
    assert {name: digest(part) for name, part in arrays.items()} == before


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_weights_in_the_object_store_are_the_same_before_and_after_a_search(tmp_path, monkeypatch):
    put, references = ray.put, []
    monkeypatch.setattr("launch.scoring.tune_scorer.ray.put", lambda value: references.append(put(value)) or references[-1])
    supernet, batches = spaces.supernet(n_blocks=2), spaces.batches()
    chosen = spaces.placements(supernet.slots, 6)

    def kept():
        (reference,) = references
        return {name: digest(ray.get(reference).keywords[name]) for name in ("weights", "inputs", "targets")}

    with module.supernet_scorer(supernet, {"task": batches}, "loss", tmp_path, workers(), device="cpu") as scorer:
        before = kept()
        for _ in range(2):
            scores = scorer(chosen, range(len(batches)))["task"]
        assert kept() == before
    assert before["weights"] == digest(to_arrays(supernet.rack.state_dict()))
    np.testing.assert_allclose(scores, spaces.one_at_a_time(supernet, chosen, batches), rtol=1e-5, atol=1e-5)
