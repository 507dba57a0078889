"""Generation position by position, against the whole sequence computed anew for every token."""

import pytest
import torch

from models import MIXERS, RackSpec
from models.rack.generation import drawn, generate
from models.rack.modules import Rack
from tests.models.cases import CHANNEL_MIXER_CASES, MIXER_CASES

PROMPT = torch.arange(10).view(2, 5) % 11
MLP = {"kind": "mlp", "d_ff": 24}
# The kinds with their defaults run always, the options that change their form with the slow tests.
CASES = [
    pytest.param(options, id=name, marks=() if name in MIXERS else pytest.mark.slow) for name, options in MIXER_CASES.items()
]


def rack_of(*blocks, seed=0, **keys):
    """A rack in float64, where the likeliest token is the likeliest in both ways."""
    sizes = {"vocab_size": 11, "d_model": 32, "max_length": 40, **keys}
    rack = RackSpec(**sizes, stacks=[{"blocks": list(blocks)}]).build(seed).double()
    torch.manual_seed(seed)
    torch.nn.init.normal_(rack.embedding.weight)  # so that tokens matter
    return rack.eval()


def recomputed(rack, tokens, n_tokens):
    """The likeliest tokens, from the whole sequence each time."""
    with torch.no_grad():
        for _ in range(n_tokens):
            tokens = torch.cat((tokens, rack(tokens)[:, -1:].argmax(-1)), dim=1)
    return tokens


def stepped(rack, tokens):
    state, logits = rack.initial_state(len(tokens)), []
    for position in tokens.unbind(1):
        now, state = rack.step(position, state)
        logits.append(now)
    return torch.stack(logits, 1)


@pytest.mark.parametrize("mixer", CASES)
def test_stepping_gives_what_forward_gives(mixer):
    rack = rack_of({"mixer": mixer, "mlp": MLP}, {"mixer": mixer})
    tokens = PROMPT.repeat(1, 4)
    if not rack.has_step:
        with pytest.raises(NotImplementedError, match="no step form"):
            rack.initial_state(2)
        return
    torch.testing.assert_close(stepped(rack, tokens), rack(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixer", CASES)
def test_cached_generation_is_recomputed_generation(mixer):
    rack = rack_of({"mixer": mixer, "mlp": MLP}, {"mixer": mixer, "mlp": MLP})
    found = generate(rack, PROMPT, n_tokens=12, temperature=0)
    assert torch.equal(found, recomputed(rack, PROMPT, 12))
    assert torch.equal(found[:, :5], PROMPT)


def test_a_rack_with_steps_never_looks_back(monkeypatch):
    rack = rack_of({"mixer": "attention"})
    monkeypatch.setattr(Rack, "forward", None)
    assert generate(rack, PROMPT, n_tokens=3).shape == (2, 8)


ATTENTION = {"kind": "attention", "n_heads": 2}
GDN = {"kind": "gated_delta_net", "n_heads": 2}


def test_all_that_a_block_may_have():
    block = {"mixer": ATTENTION, "mlp": MLP, "mixer_post_norm": "layernorm", "mlp_post_norm": "rmsnorm", "output_scale": 0.5}
    rack = rack_of(block, {"mixer": GDN, "mlp": None, "mixer_norm": None}, {"mlp": "moe"}, {}, head={"kind": "language_model"})
    torch.testing.assert_close(stepped(rack, PROMPT), rack(PROMPT))


def test_a_shared_block_has_a_state_for_each_place():
    shared = {"mixer": GDN, "mlp": MLP, "share": "one"}
    rack = rack_of(shared, {"mixer": ATTENTION}, shared)
    torch.testing.assert_close(stepped(rack, PROMPT), rack(PROMPT))
    states = rack.initial_state(2)[1]
    assert len(states) == 3
    assert states[0][0] is not states[2][0]


def test_the_active_choice_goes_on():
    mixers = {"attention": ATTENTION, "gdn": GDN, "hyena": {"kind": "hyena"}}
    mixer = {"kind": "stochastic", "main": "attention", "mixers": mixers}
    mlp = {"kind": "stochastic", "main": "none", "mixers": {"none": None, "wide": MLP}}
    rack = rack_of({"mixer": mixer, "mlp": mlp}, {"mixer": GDN})
    block, found = rack.blocks()[0], {}
    for name in ("attention", "gdn"):
        for wide in ("none", "wide"):
            block.mixer.active, block.mlp.active = name, wide
            assert rack.has_step
            torch.testing.assert_close(stepped(rack, PROMPT), rack(PROMPT))
            found[name, wide] = rack(PROMPT)
    assert not torch.allclose(found["gdn", "none"], found["gdn", "wide"])
    block.mixer.active = "hyena"
    assert not rack.has_step
    assert torch.equal(generate(rack, PROMPT, n_tokens=4, temperature=0), recomputed(rack, PROMPT, 4))


def test_attention_that_looks_ahead_is_computed_anew():
    rack = rack_of({"mixer": {**ATTENTION, "causal": False}})
    assert not rack.has_step
    assert torch.equal(generate(rack, PROMPT, n_tokens=4, temperature=0), recomputed(rack, PROMPT, 4))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_embedding_knows_the_position(positions):
    embedding = {"kind": "token", "positions": positions, "scale": 2.0}
    rack = rack_of({"mixer": {**ATTENTION, "rope_base": None}}, embedding=embedding, max_length=9)
    torch.testing.assert_close(stepped(rack, PROMPT), rack(PROMPT))
    assert torch.equal(generate(rack, PROMPT, n_tokens=5, temperature=0), recomputed(rack, PROMPT, 5))
    with pytest.raises(ValueError, match="10 positions, but the embedding has max_length = 9"):
        generate(rack, PROMPT, n_tokens=6)


@pytest.mark.parametrize("mlp", CHANNEL_MIXER_CASES.values(), ids=CHANNEL_MIXER_CASES)
def test_channel_mixers_go_on_too_with_a_state_or_without(mlp):
    rack = rack_of({"mixer": ATTENTION, "mlp": mlp}, {"mixer": GDN, "mlp": mlp})
    torch.testing.assert_close(stepped(rack, PROMPT), rack(PROMPT), rtol=1e-5, atol=1e-5)
    assert torch.equal(generate(rack, PROMPT, n_tokens=6, temperature=0), recomputed(rack, PROMPT, 6))


def test_a_channel_mixer_that_looks_back_is_a_choice_like_others():
    mlp = {"kind": "stochastic", "main": "wide", "mixers": {"wide": MLP, "rwkv": {"kind": "rwkv"}}}
    rack = rack_of({"mixer": ATTENTION, "mlp": mlp})
    found = []
    for name in ("wide", "rwkv"):
        rack.blocks()[0].mlp.active = name
        torch.testing.assert_close(stepped(rack, PROMPT), rack(PROMPT))
        found.append(rack(PROMPT))
    assert not torch.allclose(*found)


def test_draws_follow_the_generator_and_the_default_one_is_new():
    rack = rack_of({"mixer": ATTENTION})

    def drawn_by(seed):
        return generate(rack, PROMPT, n_tokens=30, generator=torch.Generator().manual_seed(seed))

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(drawn_by(1), drawn_by(1))
    assert not torch.equal(drawn_by(1), drawn_by(2))
    assert torch.equal(generate(rack, PROMPT, n_tokens=30), drawn_by(0))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 2), (1.0, 3), (1.0, 99)])
def test_draws_are_as_frequent_as_they_should_be(temperature, top_k):
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    chances = (logits / temperature).exp()
    if top_k is not None:
        chances[logits < logits.sort(descending=True).values[min(top_k, 4) - 1]] = 0
    rows = logits.expand(20_000, 4)
    found = drawn(rows, temperature=temperature, top_k=top_k, generator=torch.Generator().manual_seed(0))
    frequencies = found.bincount(minlength=4) / len(rows)
    torch.testing.assert_close(frequencies, chances / chances.sum(), rtol=0, atol=0.015)
    assert (frequencies[chances == 0] == 0).all()


def test_dropout_is_off_and_every_mode_is_kept():
    rack = rack_of({"mixer": ATTENTION, "dropout": 0.9})
    expected = generate(rack, PROMPT, n_tokens=5, temperature=0)
    rack.train()
    rack.head.eval()
    assert torch.equal(generate(rack, PROMPT, n_tokens=5, temperature=0), expected)
    assert rack.training
    assert rack.blocks()[0].dropout.training
    assert not rack.head.training


@pytest.mark.parametrize(
    ("tokens", "keys", "message"),
    [
        (PROMPT, {"n_tokens": 0}, "n_tokens = 0 must be at least 1"),
        (PROMPT, {"temperature": -1.0}, r"temperature = -1.0 must be at least 0"),
        (PROMPT, {"top_k": 0}, "top_k = 0 must be at least 1"),
        (PROMPT[:, :0], {}, r"at least one position, not of shape \[2, 0\]"),
        (PROMPT[0], {}, r"tokens must be \[batch, time\]"),
    ],
)
def test_what_cannot_be_is_refused(tokens, keys, message):
    with pytest.raises(ValueError, match=message):
        generate(rack_of({"mixer": ATTENTION}), tokens, **{"n_tokens": 3, **keys})


def test_a_head_that_reads_out_something_else_is_refused():
    rack = rack_of({"mixer": ATTENTION}, head="autoencoder")
    assert not rack.has_step
    with pytest.raises(ValueError, match="the head Autoencoder does not say what comes next"):
        generate(rack, PROMPT, n_tokens=3)
