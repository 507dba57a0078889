"""What only a GPU can show of a supernet: nothing in a step waits for the device, and bf16 trains by default."""

import pytest
import torch

from tests.search.supernets import Steps, supernet_spec, train_into

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("teacher", [None, {"source": "main", "hidden_weight": 1.0}])
def test_a_step_does_not_wait_for_the_device(teacher):
    steps = Steps(supernet_spec(teacher=teacher, placements_per_step=2, accumulate=2), torch.device("cuda"))
    for step in range(3):  # what is made once is made here
        steps.without_waiting(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            steps.without_waiting(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_trains_close_to_float32(tmp_path):
    losses = {}
    for precision in ("auto", "fp32"):
        spec = supernet_spec(n_steps=60, eval_every=60, train={"device": "cuda", "precision": precision})
        losses[precision] = train_into(tmp_path / precision, spec)["train_loss"]
    assert losses["auto"] != losses["fp32"]
    assert losses["auto"] == pytest.approx(losses["fp32"], rel=0.05)
