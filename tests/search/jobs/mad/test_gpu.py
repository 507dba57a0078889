"""What only a GPU can show: bf16 by default, packing by default and exact, nothing in a step that waits for the device."""

import pytest
import torch

from models import MIXERS
from search.jobs.mad.job import pack_size
from search.training.batches import EpochBatches
from search.training.devices import resolve_device
from search.training.loop import train
from search.training.metrics import token_losses
from search.training.packing import Pack
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tasks import draw
from tests.launch.runs import tiny
from tests.models.cases import MIXER_CASES
from tests.search.cases import TASK, evaluate_on, rack_spec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GRID = [(1e-4, 0.0), (1e-3, 0.0), (1e-3, 0.1)]
KINDS = [pytest.param([MIXER_CASES[kind]], id=kind) for kind in MIXERS]


def batches(split="train"):
    return EpochBatches(draw(TASK, 48, seed=0, split=split), 16, seed=0, device=torch.device("cuda"))


def members(layers, data):
    return [TrainState(rack_spec(layers).build(0).cuda(), data, lr, decay) for lr, decay in GRID]


def run(group, **keys):
    spec = TrainSpec(device="cuda", **keys)
    train(group, spec, n_steps=50, eval_every=10, evaluate=evaluate_on(batches("test")))
    return group


def test_auto_is_cuda_and_packs():
    assert resolve_device("auto").type == "cuda"
    assert pack_size(tiny()) == 6


@pytest.mark.parametrize("layers", KINDS)
def test_a_packed_grid_equals_separate_runs(layers):
    data = batches()
    packed = run(members(layers, data), precision="fp32")
    for index, single in enumerate(packed):
        (alone,) = run([members(layers, data)[index]], precision="fp32")
        curves = [[row["train_loss"] for row in one.history] for one in (single, alone)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.parametrize("layers", KINDS)
def test_bf16_trains(layers):
    for single in run(members(layers, batches())):
        assert single.status == "finished"
        assert single.history[-1]["train_loss"] < single.history[0]["train_loss"]


@pytest.mark.parametrize("layers", KINDS)
def test_cpu_and_gpu_agree(layers):
    inputs = torch.tensor(draw(TASK, 8, seed=0, split="test").inputs)
    model = rack_spec(layers).build(0)
    expected = model(inputs)
    torch.testing.assert_close(model.cuda()(inputs.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layers", KINDS)
def test_a_step_does_not_wait_for_the_device(layers):
    data = batches()
    pack = Pack([single.model for single in members(layers, data)])
    inputs, targets = data[0]
    token_losses(pack(inputs), targets).sum().backward()  # what is made once is made here
    torch.cuda.set_sync_debug_mode("error")
    try:
        token_losses(pack(inputs), targets).sum().backward()
        data[1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
