"""Experts that are computed where they were chosen, against all of them everywhere: values, gradients, memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.channel_mixers import moe
from models.channel_mixers.moe import MoE
from models.linears.adapters import Adapter, set_bias
from models.linears.convert import quantised, with_adapters
from models.ops import experts
from search.evaluation.memory_count import peak_bytes
from tests.models.cases import gradients, noise, packed_equals_separate


def mixer_of(*, d_model=16, n_experts=5, n_active=2, d_expert=7, dtype=torch.float64):
    torch.manual_seed(0)
    return MoE(d_model, n_experts=n_experts, n_active=n_active, d_expert=d_expert).to(dtype)


@pytest.fixture
def always_sorted(monkeypatch):
    monkeypatch.setattr(experts, "LEAST_SAVED", 0)


@pytest.fixture
def counts(monkeypatch):
    """How often experts were sorted."""
    calls = []
    monkeypatch.setattr(
        moe, "sorted_experts", lambda *tensors, **sizes: calls.append(0) or experts.sorted_experts(*tensors, **sizes)
    )
    return calls


def both(mixer, x, monkeypatch):
    """Outputs and gradients, sorted and with all experts."""
    found = []
    for is_sorted in (True, False):
        monkeypatch.setattr(moe, "is_sorted_faster", lambda *_, answer=is_sorted: answer)
        found.append({"y": mixer(x), **gradients(mixer, x)})
    return found


@pytest.mark.parametrize(("n_experts", "n_active", "d_expert"), [(5, 2, 7), (8, 3, 1), (3, 3, 4), (40, 2, 5)])
@pytest.mark.parametrize("shape", [(), (1,), (2, 33), (3, 5, 7)])
def test_sorted_experts_give_what_all_give(n_experts, n_active, d_expert, shape, monkeypatch):
    mixer = mixer_of(n_experts=n_experts, n_active=n_active, d_expert=d_expert)
    found, expected = both(mixer, noise(*shape, 16, dtype=torch.float64), monkeypatch)
    torch.testing.assert_close(found, expected)


def test_experts_that_nobody_chose_get_zero_gradients(monkeypatch):
    mixer = mixer_of()
    with torch.no_grad():
        mixer.router.weight.copy_(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0])[:, None].expand(5, 16))
    found, expected = both(mixer, noise(9, 16, dtype=torch.float64).abs(), monkeypatch)
    torch.testing.assert_close(found, expected)
    assert found["up.weight"].unflatten(0, (5, 7)).abs().amax((1, 2)).bool().tolist() == [True, False, True, False, False]


def test_under_autocast_it_is_as_exact(monkeypatch):
    mixer, x = mixer_of(dtype=torch.float32, d_model=64, d_expert=32), noise(3, 21, 64)
    exact = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = both(mixer, x, monkeypatch)
    assert found["y"].dtype == expected["y"].dtype == torch.bfloat16
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in expected.items()}
    assert (found["y"] - exact).abs().mean() <= 1.1 * (expected["y"] - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_product_gives_what_the_loop_gives(dtype, monkeypatch):
    mixer, x = mixer_of(dtype=dtype, n_experts=6, d_expert=8), noise(3, 21, 16, dtype=dtype)
    monkeypatch.setattr(experts, "LEAST_SAVED", 0)
    expected = {"y": mixer(x), **gradients(mixer, x)}
    monkeypatch.setattr(experts, "_one_by_one", experts._grouped)
    found = {"y": mixer(x), **gradients(mixer, x)}
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize(("n_positions", "is_sorted"), [(1, False), (64, False), (2048, True)])
def test_many_positions_are_sorted(n_positions, is_sorted, counts):
    mixer_of(d_model=64, n_experts=8, d_expert=64, dtype=torch.float32)(noise(n_positions, 64))
    assert bool(counts) == is_sorted


@pytest.mark.usefixtures("always_sorted")
def test_what_is_more_than_weights_is_computed_by_its_linears(counts):
    x = noise(9, 32)
    for change in (
        lambda mixer: set_bias(mixer.up, has_bias=True),
        lambda mixer: setattr(mixer, "down", with_adapters(mixer.down, {"lora": Adapter(64, 32, rank=2, alpha=2)})),
        lambda mixer: setattr(mixer, "gate", quantised(mixer.gate, "fp8")),
    ):
        mixer = mixer_of(d_model=32, n_experts=4, d_expert=16, dtype=torch.float32)
        mixer(x)
        n_sorted, n_flops = len(counts), mixer.flops(9)
        change(mixer)
        mixer(x)
        assert len(counts) == n_sorted > 0
        assert mixer.flops(9) > 1.5 * n_flops


@pytest.mark.usefixtures("always_sorted")
def test_packed_models_compute_all_experts(counts):
    mixers, x = [mixer_of(dtype=torch.float32) for _ in range(2)], noise(2, 9, 16)
    packed_equals_separate(mixers, x)
    n_separate = len(counts)
    assert n_separate > 0
    torch.vmap(lambda weights, x: torch.func.functional_call(mixers[0], weights, (x,)))(
        torch.func.stack_module_state(mixers)[0], x
    )
    assert len(counts) == n_separate


@pytest.mark.usefixtures("always_sorted")
def test_tensors_without_numbers_take_what_others_take(counts):
    def held(mixer, x):
        return peak_bytes(lambda: mixer(x).sum().backward())

    expected = held(mixer_of(dtype=torch.float32), noise(200, 16))
    with FakeTensorMode():
        found = held(MoE(16, n_experts=5, n_active=2, d_expert=7), torch.zeros(200, 16))
    assert len(counts) == 2
    assert found == pytest.approx(expected, rel=0.05)
