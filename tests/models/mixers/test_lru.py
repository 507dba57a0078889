"""The linear recurrent unit: against a loop, and against RecurrentGemma's."""

import pytest
import torch

from models.mixers.lru import LRU, diagonal_scan
from tests.models.cases import noise


def loop(log_decay, added):
    state, states = torch.zeros_like(added[:, 0]), []
    for position in range(added.shape[1]):
        state = log_decay[:, position].exp() * state + added[:, position]
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("time", [1, 2, 17, 33, 65, 100])
def test_the_scan_is_the_loop(time):
    inputs = [-noise(2, time, 5, seed=1, dtype=torch.float64).abs(), noise(2, time, 5, seed=2, dtype=torch.float64)]
    found = []
    for scan in (diagonal_scan, loop):
        leaves = [part.clone().requires_grad_() for part in inputs]
        states = scan(*leaves)
        found.append([states, *torch.autograd.grad((states * noise(2, time, 5, seed=3, dtype=torch.float64)).sum(), leaves)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_recurrent_gemma_has_the_same_outputs_with_the_same_weights():
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    config = RecurrentGemmaConfig(hidden_size=32, lru_width=64, num_attention_heads=1, conv1d_width=4, num_hidden_layers=1)
    config.hidden_activation = "gelu_pytorch_tanh"
    theirs, ours = RecurrentGemmaRecurrentBlock(config, 0), LRU(32, expand=2)
    gates = {"rate": "recurrent_gate", "write": "input_gate"}
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(theirs.named_parameters())):
            parameter.copy_(0.3 * noise(*parameter.shape, seed=index))
        for bias in (theirs.linear_x.bias, theirs.linear_y.bias, theirs.linear_out.bias):
            bias.zero_()  # ours has none
        pairs = {"input": theirs.linear_x, "gate": theirs.linear_y, "output": theirs.linear_out}
        weights = {f"{name}.weight": linear.weight for name, linear in pairs.items()}
        weights |= {"convolution.weight": theirs.conv_1d.weight[:, 0], "convolution.bias": theirs.conv_1d.bias}
        weights["decay"] = theirs.rg_lru.recurrent_param
        for own, other in gates.items():
            weights[f"{own}.weight"] = getattr(theirs.rg_lru, f"{other}_weight")[0].T
            weights[f"{own}.bias"] = getattr(theirs.rg_lru, f"{other}_bias")[0]
    ours.load_state_dict(weights)
    x = noise(2, 23, 32)
    # Positions from 1: at 0 theirs leaves out the root, which the paper's formula has everywhere.
    expected, _ = theirs(x, torch.arange(1, 24)[None].expand(2, -1), None, use_cache=False)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


def test_memory_lasts_as_long_as_asked_for():
    mixer = LRU(16)
    assert mixer.set_memory_length(100) == ("decay",)
    torch.testing.assert_close(8 * torch.nn.functional.softplus(mixer.decay) / 2, torch.full((16,), 0.01))


def test_channels_start_with_memories_of_ten_to_a_thousand_positions():
    kept = (-8 * torch.nn.functional.softplus(LRU(256).decay)).exp()
    assert 0.9 <= kept.min() < 0.91
    assert 0.99 < kept.max() <= 0.999
