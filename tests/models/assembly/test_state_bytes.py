"""The bytes that a sequence is said to take are those that the states of a real run hold, in every precision."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._pytree import tree_leaves

from models import CHANNEL_MIXERS, MIXERS, RackSpec
from models.assembly.cost import state_bytes
from models.rack.contracts import Mixer
from search.budget import CostTable
from tests.models.cases import CHANNEL_MIXER_CASES, D_MODEL, MIXER_CASES, build

CASES = {f"mixer {name}": (MIXERS, options) for name, options in MIXER_CASES.items()} | {
    f"mlp {name}": (CHANNEL_MIXERS, options) for name, options in CHANNEL_MIXER_CASES.items()
}
HEADS = {"n_heads": 4}
TOLD = {
    "gated_delta_net": ({**HEADS, "expand_v": 2.0}, 3584),
    "mamba2": ({"d_state": 16}, 5248),
    "mamba": ({"d_state": 4}, 1792),
    "lru": ({}, 512),
    "linear_attention": (HEADS, 1152),
    "gated_linear_attention": (HEADS, 1024),
    "attention": (HEADS, 0),
}
"""Bytes at d_model 32, counted by hand: numbers of states, normalisers and convolutions' last inputs, four bytes each."""


def computing(precision):
    return torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()


def held(part, n_steps, precision):
    """What the state after some steps holds of one sequence; the position is one for all of a batch."""
    sizes = []
    for n_sequences in (1, 2):
        with computing(precision), torch.no_grad():
            state = part.initial_state(n_sequences)
            for _ in range(n_steps):
                x = torch.ones(n_sequences, D_MODEL, dtype=torch.bfloat16 if precision == "bfloat16" else None)
                _, state = part.step(x, state)
        sizes.append(sum(tensor.nbytes for tensor in tree_leaves(state)))
    return sizes[1] - sizes[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize(("registry", "options"), CASES.values(), ids=CASES)
def test_a_state_takes_what_is_said_after_any_number_of_steps(registry, options, precision):
    part = build(registry, options)
    if not part.has_step:
        assert state_bytes(part) == (4 * part.state_size(100) if isinstance(part, Mixer) else 0)
        return
    with torch.device("meta"):
        said = state_bytes(build(registry, options))
    part = part.bfloat16() if precision == "bfloat16" else part
    grows = isinstance(part, Mixer) and part.state_size(2) > part.state_size(1)
    for n_steps in (0, 1, 7):
        cached = part.state_size(n_steps) * (4 if precision == "float32" else 2) if grows and n_steps else 0
        assert held(part, n_steps, precision) == said + cached, n_steps


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize(("registry", "options"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_steps_in_half_precision_give_what_forward_gives(registry, options, precision):
    """The memory is at least as exact as forward's: the same numbers, but for the order of sums."""
    part = build(registry, options)
    if not part.has_step:
        return
    x = torch.randn(2, 9, D_MODEL, generator=torch.Generator().manual_seed(1))
    if precision == "bfloat16":
        part, x = part.bfloat16(), x.bfloat16()
    with computing(precision):
        state, outputs = part.initial_state(2), []
        for position in x.unbind(1):
            output, state = part.step(position, state)
            outputs.append(output)
        expected = part(x)
    error = (torch.stack(outputs, 1) - expected).float().norm() / expected.float().norm()
    assert error < 5e-3


@pytest.mark.parametrize("kind", TOLD)
def test_the_budget_counts_what_was_counted_by_hand(kind):
    options, expected = TOLD[kind]
    for dtype, size in (("fp32", 4), ("bf16", 2), ("fp8", 1)):
        block = {"mixer": {"kind": kind, **options}}
        costs = CostTable.of(RackSpec(vocab_size=8, d_model=32, stacks=[{"blocks": [block]}]), 64, dtype).base
        assert costs["state_bytes"] == expected
        assert costs["kv_bytes"] == (2 * 32 * 64 * size if kind == "attention" else 0)


@pytest.mark.parametrize(("dtype", "precision"), [("fp32", "float32"), ("bf16", "autocast")])
def test_a_hybrid_takes_the_sum_of_its_parts(dtype, precision):
    blocks = [
        {"mixer": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "window": 5, "d_conv": 3}, "mlp": "rwkv"},
        {"mixer": {"kind": "stochastic", "main": "mla", "mixers": {"mla": {"kind": "mla"}, "gdn": {"kind": "gated_delta_net"}}}},
        {"mixer": "retention", "share": "one"},
        {"mixer": "retention", "share": "one"},
    ]
    space = RackSpec(vocab_size=8, d_model=32, stacks=[{"blocks": blocks}])
    for name in ("mla", "gdn"):
        rack, sizes = space.place((name,)).build().eval(), []
        for n_sequences in (1, 2):
            with computing(precision), torch.no_grad():
                state = rack.initial_state(n_sequences)
                for _ in range(9):
                    _, state = rack.step(torch.zeros(n_sequences, dtype=torch.long), state)
            sizes.append(sum(tensor.nbytes for tensor in tree_leaves(state[1]) if isinstance(tensor, torch.Tensor)))
        costs = CostTable.of(space, 9, dtype).of_placement((name,))
        assert sizes[1] - sizes[0] == costs["kv_bytes"] + costs["state_bytes"]
