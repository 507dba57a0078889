"""The embedding of time steps: nothing at first, and then whatever a time needs."""

import copy
import math

import pytest
import torch

from models import RackSpec
from models.rack.time_embedding import TimeEmbedding

STEPS = torch.tensor([3, 0, 9, 3])
each_kind = pytest.mark.parametrize("kind", ["sinusoidal", "learned"])


def embedding(kind, seed=0):
    torch.manual_seed(seed)
    return TimeEmbedding(6, 10, kind=kind, d_time=8)


def trained(kind, n_steps=30):
    """After learning that time t is the vector (t, t, ...) / 10."""
    module, times = embedding(kind), torch.arange(10)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = (module(times) - (times / 10).view(10, 1, 1)).square().mean()
        loss.backward()
        optimizer.step()
    return module, loss.item()


@each_kind
def test_it_starts_with_nothing_to_add(kind):
    out = embedding(kind)(STEPS)
    assert out.shape == (4, 1, 6)
    assert torch.equal(out, torch.zeros(4, 1, 6))


@each_kind
def test_it_leaves_zero_at_the_first_step(kind):
    module = embedding(kind)
    (module(STEPS) - 1).square().sum().backward()
    gradient = module.output.weight.grad if kind == "sinusoidal" else module.table.weight.grad
    assert gradient.abs().sum() > 0
    if kind == "learned":
        assert gradient.abs().sum(1).ne(0).tolist() == [step in STEPS.tolist() for step in range(10)]


@each_kind
def test_it_learns_times_apart_and_every_parameter_moves(kind):
    before = dict(embedding(kind).named_parameters())
    module, loss = trained(kind, n_steps=200)
    assert loss < 0.01
    assert all(not torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    out = module(STEPS)
    torch.testing.assert_close(out[0], out[3])
    assert (out[0] - out[2]).abs().min() > 0.3


def test_the_sinusoidal_kind_is_its_formula():
    module, _ = trained("sinusoidal")
    for t in (0, 1, 7):
        angles = [t / 10_000 ** (channel / 3) for channel in range(4)]
        row = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
        hidden = module.hidden(row)
        torch.testing.assert_close(module(torch.tensor([t]))[0, 0], module.output(hidden / (1 + torch.exp(-hidden))))


@each_kind
def test_what_is_saved(kind):
    module, _ = trained(kind)
    linears = ["hidden.weight", "hidden.bias", "output.weight", "output.bias"]
    assert list(module.state_dict()) == [*(["table.weight"] if kind == "learned" else []), *linears]
    fresh = embedding(kind, seed=1)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(STEPS), module(STEPS))
    assert torch.equal(copy.deepcopy(module)(STEPS), module(STEPS))


@each_kind
def test_builds_without_memory_and_is_packed(kind):
    with torch.device("meta"):
        assert embedding(kind)(torch.zeros(3, dtype=torch.long)).shape == (3, 1, 6)
    models = [trained(kind, n_steps)[0] for n_steps in (3, 6)]
    parameters, buffers = torch.func.stack_module_state(models)
    together = torch.vmap(lambda *tensors: torch.func.functional_call(models[0], tensors, (STEPS,)))(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([model(STEPS) for model in models]))


@each_kind
def test_times_end(kind):
    with pytest.raises(ValueError, match=r"t must be from 0 to 9; got \[10\]"):
        embedding(kind)(torch.tensor([10]))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((6, 0), {}, "n_steps = 0 must be at least 1"),
        ((6, 4), {"d_time": 0}, "d_time = 0 must be at least 1"),
        ((6, 4), {"d_time": 7}, "d_time = 7 must be even with kind = 'sinusoidal'"),
        ((6, 4), {"kind": "fourier"}, "kind = 'fourier' must be one of sinusoidal, learned"),
    ],
)
def test_what_cannot_be_is_refused(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        TimeEmbedding(*sizes, **options)
    assert TimeEmbedding(6, 4, kind="learned", d_time=7)(torch.tensor([1])).shape == (1, 1, 6)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0, 5]), "t must be from 0 to 4"),
        (torch.tensor([-1, 0]), "t must be from 0 to 4"),
        (torch.tensor([0.0, 1.0]), r"t must be time steps \[batch\] int64; got torch.float32"),
        (torch.tensor([True, False]), "got torch.bool"),
        (torch.zeros(2, 1, dtype=torch.long), r"int64; got torch.int64 \[2, 1\]"),
        (torch.tensor(1), r"got torch.int64 \[\]"),
    ],
)
def test_times_that_cannot_be(kind, t, message):
    with pytest.raises(ValueError, match=message):
        TimeEmbedding(8, 5, kind=kind, d_time=4)(t)


def test_a_rack_gets_a_time_for_each_sample():
    time = {"n_steps": 5, "d_time": 4}
    rack = RackSpec(vocab_size=8, d_model=16, time=time, stacks=[{"n_blocks": 1, "block": {"mlp": "swiglu"}}]).build()
    tokens = torch.zeros(2, 3, dtype=torch.long)
    assert rack(tokens, t=torch.tensor([0, 4])).shape == (2, 3, 8)
    with pytest.raises(ValueError, match=r"t must be \[batch\] = \[2\], the time step of each sample; got \[1\]"):
        rack(tokens, t=torch.tensor([0]))
