"""The embedding of tokens: what it adds to torch's, and where its positions end."""

import math

import pytest
import torch
from torch import nn

from models.ops.attention.positions import sinusoidal_positions
from models.parts.embeddings.token import Token

TOKENS = torch.arange(18).view(2, 9) % 7
each_kind = pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal"])


def token(seed=0, **options):
    torch.manual_seed(seed)
    return Token(7, 6, 12, **options)


def test_as_it_comes_it_is_torchs_own():
    embedding, plain = token(), nn.Embedding(7, 6)
    plain.load_state_dict(embedding.state_dict())
    assert torch.equal(embedding(TOKENS), plain(TOKENS))
    assert embedding(TOKENS.repeat(1, 100), offset=7).shape == (2, 900, 6)


@pytest.mark.parametrize(
    ("options", "names"),
    [({}, ["weight"]), ({"positions": "learned"}, ["weight", "positions.weight"]), ({"positions": "sinusoidal"}, ["weight"])],
)
def test_what_is_saved(options, names):
    assert list(token(**options).state_dict()) == names


@pytest.mark.parametrize("scale", [1.0, 2.5])
@each_kind
def test_positions_are_added_to_scaled_tokens(positions, scale):
    embedding = token(positions=positions, scale=scale)
    for place in range(9):
        expected = scale * embedding.weight[TOKENS[:, place]]
        if positions == "learned":
            expected = expected + embedding.positions.weight[place]
        if positions == "sinusoidal":
            angles = [place / 10_000 ** (channel / 2) for channel in range(3)]
            expected = expected + torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
        torch.testing.assert_close(embedding(TOKENS)[:, place], expected)


@each_kind
def test_an_offset_is_a_place_in_a_longer_sequence(positions):
    embedding = token(positions=positions)
    for first in range(9):
        assert torch.equal(embedding(TOKENS[:, first:], offset=first), embedding(TOKENS)[:, first:])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_end(positions):
    embedding = token(positions=positions)
    assert embedding(TOKENS, offset=3).shape == (2, 9, 6)
    with pytest.raises(ValueError, match="the sequence has 13 positions, but the embedding has max_length = 12"):
        embedding(TOKENS, offset=4)


def test_dropout_acts_in_training_alone():
    embedding = token(dropout=0.5)
    assert (embedding(TOKENS) == 0).any()
    assert torch.equal(embedding.eval()(TOKENS), token()(TOKENS))


@each_kind
def test_builds_without_memory_and_is_packed(positions):
    with torch.device("meta"):
        embedding = token(positions=positions)
        assert embedding(torch.zeros(2, 9, dtype=torch.long)).shape == (2, 9, 6)
    models = [token(seed, positions=positions) for seed in (0, 1)]
    parameters, _ = torch.func.stack_module_state(models)
    together = torch.vmap(lambda weights: torch.func.functional_call(models[0], weights, (TOKENS,)))(parameters)
    torch.testing.assert_close(together, torch.stack([model(TOKENS) for model in models]))


def test_learned_positions_start_as_small_as_tokens_do():
    torch.manual_seed(0)
    assert Token(5, 64, 500, positions="learned").positions.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((7, 6, None), {"positions": "learned"}, "positions = 'learned' needs the rack's max_length"),
        ((7, 6), {"positions": "sinusoidal"}, "positions = 'sinusoidal' needs the rack's max_length"),
        ((7, 5, 12), {"positions": "sinusoidal"}, "d_model 5 is odd"),
        ((7, 6, 12), {"dropout": 1.0}, r"dropout = 1.0 must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        Token(*sizes, **options)


def test_a_table_of_odd_width_is_refused():
    with pytest.raises(ValueError, match="d_model 3 is odd"):
        sinusoidal_positions(4, 3)
