"""What only a GPU can show of a growth: the cache's modes agree there too, each precision trains, memory is flat over stacks."""

from itertools import pairwise

import pytest
import torch

from tests.search.growths import growth_spec, rows, same_bits, stages_here, state

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = {"device": "cuda"}


def grown(out, **keys):
    growth = keys.pop("growth", {})
    stages_here(growth_spec(train={**CUDA, **keys.pop("train", {})}, growth=growth, **keys), out)
    return rows(out)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_modes_of_the_cache_come_to_the_same_bits(precision, tmp_path):
    for mode in ("memory", "arrow", "stream"):
        grown(tmp_path / mode, growth={"cache_mode": mode}, train={"precision": precision})
    assert same_bits(state(tmp_path / "memory"), state(tmp_path / "arrow"))
    assert same_bits(state(tmp_path / "memory"), state(tmp_path / "stream"))


@pytest.mark.parametrize("precision", ["half", "bfloat16", "fp8", "nvfp4", "qlora"])
def test_every_precision_learns(precision, tmp_path):
    found = grown(tmp_path, growth={"new_stack_precision": precision, "target_stacks": 2}, n_steps=40, eval_every=40)
    assert found[-1]["loss"] < found[0]["loss_grown"]


def test_a_cpu_and_a_gpu_learn_alike(tmp_path):
    there = grown(tmp_path / "cuda", train={"precision": "fp32"})
    stages_here(growth_spec(), tmp_path / "cpu")
    for ours, theirs in zip(rows(tmp_path / "cpu"), there, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)


def test_peak_memory_does_not_grow_with_a_frozen_trunk_by_more_than_its_weights(tmp_path):
    sizes = {"rack": {"d_model": 256}, "data": {"batch_size": 64, "n_train": 128}}
    found = grown(tmp_path, growth={"target_stacks": 6}, **sizes)
    for before, after in pairwise(found[1:]):
        assert after["peak_bytes"] - before["peak_bytes"] <= 1.05 * (after["weight_bytes"] - before["weight_bytes"])
