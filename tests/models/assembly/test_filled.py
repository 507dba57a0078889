"""A rack that is filled is the rack that was built, in everything but what its building draws."""

import pytest
import torch

from models import RackSpec
from models.assembly.assemble import filled, without_numbers
from tests.models.cases import CHANNEL_MIXER_CASES, D_MODEL, MAX_LENGTH, MIXER_CASES

MLP, ATTENTION = {"kind": "swiglu", "d_ff": 24}, {"kind": "attention", "n_heads": 2}
BLOCK = {"mixer": ATTENTION, "mlp": MLP}
CHOICES = {
    "kind": "stochastic",
    "main": "attention",
    "mixers": {"attention": ATTENTION, "gdn": {"kind": "gated_delta_net", "n_heads": 2}, "none": {"kind": "identity"}},
}
STACKED = {"n_blocks": 2, "block": BLOCK}
RACKS = {
    **{f"mixer {name}": {"stacks": [{"blocks": [{"mixer": mixer, "mlp": MLP}]}]} for name, mixer in MIXER_CASES.items()},
    **{f"mlp {name}": {"stacks": [{"blocks": [{"mixer": ATTENTION, "mlp": mlp}]}]} for name, mlp in CHANNEL_MIXER_CASES.items()},
    **{
        f"stored as {precision}": {"stacks": [{**STACKED, "precision": precision, "stored": True}]}
        for precision in ("qlora", "nvfp4", "fp8", "bfloat16", "half")
    },
    "trained as stored": {"stacks": [{**STACKED, "precision": "fp8"}]},
    "adapters": {"stacks": [{**STACKED, "lora": {"rank": 2, "alpha": 3, "dropout": 0.1}}]},
    "choices": {"stacks": [{"n_blocks": 2, "block": {"mixer": CHOICES, "mlp": MLP}}]},
    "tied": {"tie_embeddings": True, "stacks": [STACKED]},
    "shared": {"stacks": [{"blocks": [{**BLOCK, "share": "one"}, BLOCK, {**BLOCK, "share": "one"}]}]},
    "frozen": {"embedding": {"kind": "token", "lr_scale": 0.0}, "stacks": [{**STACKED, "lr_scale": 0.5, "weight_decay": 0.3}]},
    "sinusoidal": {"embedding": {"kind": "token", "positions": "sinusoidal"}, "stacks": [STACKED]},
    "learned": {"embedding": {"kind": "token", "positions": "learned"}, "stacks": [STACKED]},
    "autoencoder": {"head": {"kind": "autoencoder"}, "stacks": [STACKED]},
    "time": {"time": {"n_steps": 5, "d_time": 6}, "stacks": [STACKED]},
    "learned time": {"time": {"kind": "learned", "n_steps": 5, "d_time": 6}, "stacks": [STACKED]},
}


def marks(parameter):
    return parameter.requires_grad, vars(parameter)


@pytest.mark.parametrize("name", RACKS)
def test_a_filled_rack_is_the_one_that_was_built(name):
    spec = RackSpec(**{"vocab_size": 11, "d_model": D_MODEL, "max_length": MAX_LENGTH, **RACKS[name]})
    built = spec.build(seed=3)
    given = built.state_dict()
    asked = []

    def read(key):
        asked.append(key)
        return given[key].clone()

    rack = filled(without_numbers(spec), read)
    assert len(asked) == len(set(asked))
    assert str(rack) == str(built)
    ours, theirs = (dict(each.named_parameters(remove_duplicate=False)) for each in (rack, built))
    assert {key: marks(each) for key, each in ours.items()} == {key: marks(each) for key, each in theirs.items()}
    names = list(theirs)
    assert [[ours[a] is ours[b] for b in names] for a in names] == [[theirs[a] is theirs[b] for b in names] for a in names]
    ours, theirs = (dict(each.named_buffers()) for each in (rack, built))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(torch.equal(tensor, given[key]) for key, tensor in rack.state_dict().items())
    assert rack.state_dict().keys() == given.keys()
    tokens = torch.randint(11, (2, MAX_LENGTH), generator=torch.Generator().manual_seed(0))
    more = {"t": torch.tensor([0, 4])} if "time" in RACKS[name] else {}
    with torch.inference_mode():
        assert torch.equal(rack.eval()(tokens, **more), built.eval()(tokens, **more))


def test_nothing_is_drawn_and_no_generator_moves(monkeypatch):
    spec = RackSpec(vocab_size=11, d_model=D_MODEL, stacks=[STACKED])
    given, before = spec.build().state_dict(), torch.get_rng_state()
    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor if tensor.is_meta else pytest.fail("drawn"))
    filled(without_numbers(spec), lambda name: given[name].clone())
    assert torch.equal(torch.get_rng_state(), before)
