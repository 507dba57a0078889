"""Pads have no effect, wherever they stand, in any part: a padded row is its tokens alone, run or continued."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import MIXERS, RackSpec
from models.rack.generation import generate
from models.rack.modules import Block
from models.rack.padding import TokensFirst
from models.rack.reports import collecting
from tests.models.cases import CHANNEL_MIXER_CASES, D_MODEL, MIXER_CASES, build, noise

LENGTH, VOCAB = 40, 11
ATTENTION = {"kind": "attention", "n_heads": 2}
AHEAD = {
    "attention both ways": {**ATTENTION, "causal": False},
    "attention both ways window": {**ATTENTION, "causal": False, "window": 4, "sinks": True},
    "mla both ways": {"kind": "mla", "n_heads": 2, "causal": False},
    "kernel attention both ways": {"kind": "kernel_attention", "n_heads": 2, "causal": False},
}
MIXING = {**MIXER_CASES, **AHEAD}
PARTS = {f"mixer {name}": {"mixer": each} for name, each in MIXING.items()} | {
    f"mlp {name}": {"mixer": ATTENTION, "mlp": each} for name, each in CHANNEL_MIXER_CASES.items()
}


def kept():
    """Pads in front, behind, in the middle, in all three places, nowhere, and before the last token."""
    places = torch.arange(LENGTH)
    rows = [places >= 9, places < 30, (places < 5) | (places >= 22), (places % 3 == 1) & (places > 6) & (places < 33)]
    return torch.stack([*rows, places >= 0, places == LENGTH - 1])


def rack_of(*blocks, **keys):
    """A rack in evaluation mode whose tokens matter."""
    rack = RackSpec(vocab_size=VOCAB, d_model=D_MODEL, max_length=2 * LENGTH, stacks=[{"blocks": list(blocks)}], **keys).build(0)
    torch.nn.init.normal_(rack.embedding.weight, generator=torch.Generator().manual_seed(1))
    return rack.eval()


def prompts(seed=0):
    return torch.randint(VOCAB, (6, LENGTH), generator=torch.Generator().manual_seed(seed))


def assert_alone(rack, tokens, attention_mask):
    together = rack(tokens, attention_mask=attention_mask)
    for row, own in enumerate(attention_mask):
        torch.testing.assert_close(together[row, own], rack(tokens[row : row + 1, own])[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("block", PARTS.values(), ids=PARTS)
@torch.no_grad()
def test_a_padded_row_is_its_tokens_alone(block):
    """And what stands at pads is not even read."""
    rack, tokens, attention_mask = rack_of(block, block), prompts(), kept()
    assert_alone(rack, tokens, attention_mask)
    others = torch.where(attention_mask, tokens, prompts(seed=1))
    found, again = (rack(each, attention_mask=attention_mask) for each in (tokens, others))
    assert torch.equal(found, again)
    assert found.isfinite().all()


@pytest.mark.parametrize("block", PARTS.values(), ids=PARTS)
def test_pads_have_no_gradient_and_give_none(block):
    rack, attention_mask = rack_of(block).train(), kept()
    attention_mask[1] = False
    x = noise(6, LENGTH, D_MODEL)
    weights = noise(6, LENGTH, D_MODEL, seed=2) * attention_mask[..., None]
    found = []
    for at_pads in (0.0, 50.0):
        hidden = torch.where(attention_mask[..., None], x, at_pads).requires_grad_()
        parameters = list(rack.stacks.parameters())
        y = rack.run(hidden, attention_mask=attention_mask)
        found.append(torch.autograd.grad((y * weights).sum(), [hidden, *parameters], allow_unused=True))
        assert all(each is None or each.isfinite().all() for each in found[-1])
        assert found[-1][0][~attention_mask].abs().max() == 0
        assert found[-1][0][attention_mask].abs().amax(-1).min() > 0
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("mixer", MIXING.values(), ids=MIXING)
@torch.no_grad()
def test_prompts_of_unlike_lengths_go_on_as_each_would_alone(mixer):
    rack, tokens, attention_mask = rack_of({"mixer": mixer, "mlp": "rwkv"}).double(), prompts(), kept()
    found = generate(rack, tokens, n_tokens=5, temperature=0, attention_mask=attention_mask)
    assert torch.equal(found[:, :LENGTH], tokens)
    for row, own in enumerate(attention_mask):
        alone = generate(rack, tokens[row : row + 1, own], n_tokens=5, temperature=0)
        assert torch.equal(found[row, LENGTH:], alone[0, own.sum() :]), row


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@torch.no_grad()
def test_positions_are_counted_without_pads(positions):
    rack = rack_of({"mixer": {**ATTENTION, "rope_base": None}}, embedding={"kind": "token", "positions": positions, "scale": 2.0})
    assert_alone(rack, prompts(), kept())
    found = generate(rack, prompts(), n_tokens=3, temperature=0, attention_mask=kept())
    alone = generate(rack, prompts()[:1, 9:], n_tokens=3, temperature=0)
    assert torch.equal(found[0, LENGTH:], alone[0, -3:])


@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
@torch.no_grad()
def test_a_head_that_pools_pools_tokens(pooling):
    rack = rack_of({"mixer": "mamba"}, head={"kind": "autoencoder", "pooling": pooling})
    together, attention_mask = rack(prompts(), attention_mask=kept()), kept()
    for row, own in enumerate(attention_mask):
        torch.testing.assert_close(together[row], rack(prompts()[row : row + 1, own])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["load_balance", "z_loss"])
def test_what_is_reported_of_all_positions_leaves_pads_out(name):
    rack = rack_of({"mixer": ATTENTION, "mlp": "moe"}, head={"kind": "language_model", "z_loss": 1.0}).train()
    tokens, own = prompts()[3:4], kept()[3:4]
    with collecting() as padded:
        rack(tokens, attention_mask=own)
    with collecting() as alone:
        rack(tokens[:, own[0]])
    torch.testing.assert_close(padded.losses[name], alone.losses[name])


@pytest.mark.parametrize("mixer", [MIXING[name] for name in ("attention", "mamba2", "attention both ways")], ids=str)
def test_packed_racks_take_masks(mixer):
    """Of each model its own, or one for all."""
    blocks = [Block(build(MIXERS, mixer, seed=seed)) for seed in range(2)]
    x, masks = noise(2, 3, LENGTH, D_MODEL), torch.stack([kept()[:3], kept()[2:5]])
    parameters, _ = torch.func.stack_module_state(blocks)

    def call(weights, x, attention_mask):
        return torch.func.functional_call(blocks[0], weights, (x, attention_mask))

    with sdpa_kernel(SDPBackend.MATH):
        for given, axis in ((masks, 0), (masks[0], None)):
            together = torch.vmap(call, in_dims=(0, 0, axis))(parameters, x, given)
            for index, block in enumerate(blocks):
                own = given[index] if axis == 0 else given
                torch.testing.assert_close(together[index][own], block(x[index], own)[own], rtol=1e-4, atol=1e-5)


def test_checkpointed_stacks_take_masks():
    rack = rack_of({"mixer": "delta_net"}, {"mixer": ATTENTION})
    expected = rack(prompts(), attention_mask=kept())
    rack.stacks[0].checkpointing = True
    found = rack(prompts(), attention_mask=kept())
    assert torch.equal(found, expected)
    found.sum().backward()


def test_tokens_come_first_in_their_order():
    attention_mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    order, x = TokensFirst(attention_mask), torch.arange(1, 16).view(3, 5)
    assert order.put(x).tolist() == [[2, 4, 5, 0, 0], [0] * 5, [11, 12, 13, 14, 15]]
    assert order.attention_mask.tolist() == [[True] * 3 + [False] * 2, [False] * 5, [True] * 5]
    assert torch.equal(order.put_back(order.put(x)), x * attention_mask)


def test_a_row_without_a_token_is_refused():
    attention_mask = kept()
    attention_mask[4] = False
    with pytest.raises(ValueError, match="attention_mask keeps no token of row 4"):
        generate(rack_of({"mixer": ATTENTION}), prompts(), n_tokens=2, attention_mask=attention_mask)
    with pytest.raises(ValueError, match=r"attention_mask must be bool \[6, 40\], true at tokens; got torch.int64"):
        generate(rack_of({"mixer": ATTENTION}), prompts(), n_tokens=2, attention_mask=kept().long())
