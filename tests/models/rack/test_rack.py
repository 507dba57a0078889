"""Racks that are built: what their function is, how they start, what they share."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import RackSpec
from models.rack.reports import collecting

SIZES = {"vocab_size": 8, "d_model": 16}
MLP = {"kind": "mlp", "d_ff": 8}
ATTENTION = {"kind": "attention", "n_heads": 2}
TOKENS = torch.arange(24).view(2, 12) % 7


def built(seed=0, **keys):
    return RackSpec(**{**SIZES, **keys}).build(seed)


def of_block(seed=0, n_blocks=1, **block):
    return built(seed, stacks=[{"n_blocks": n_blocks, "block": {"mixer": ATTENTION, "mlp": MLP, **block}}])


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def count(layers, **keys):
    return n_parameters(RackSpec(**{"d_model": 128, "vocab_size": 16, "layers": layers, **keys}).build())


TRANSFORMER = ["mh-attention", "swiglu"] * 2


def test_the_published_parameter_counts_of_language_models():
    head = {"kind": "language_model", "bias": True}
    assert count(TRANSFORMER, head=head) == 407_184
    assert count(TRANSFORMER, head=head, norm="layernorm") == 407_824


def test_the_published_parameter_count_of_the_autoencoder():
    """The figure published is of RMS norms: 4 of the layers, 2 of the decoder, 1 before the vocabulary, 128 each."""
    head = {"kind": "autoencoder", "bias": True}
    assert count(TRANSFORMER, head=head, max_length=32) == 440_464


@pytest.mark.parametrize("names", [TRANSFORMER, ["mh-attention", "mh-attention", "swiglu"], ["mlp", "mamba", "mlp", "mlp"]])
def test_layers_are_one_residual_unit_each(names):
    rack = built(d_model=32, layers=names)
    x = rack.embedding(TOKENS)
    units = []
    for block in rack.stacks[0].blocks:
        units += [(block.mixer_norm, block.mixer)] if block.mixer is not None else []
        units += [(block.mlp_norm, block.mlp)] if block.mlp is not None else []
    assert len(units) == len(names)
    for norm, part in units:
        x = x + part(norm(x))
    expected = F.linear(rack.head.norm(x), rack.head.output.weight, rack.head.output.bias)
    assert torch.equal(rack(TOKENS), expected)


def test_post_norm_scale_and_dropout_are_where_they_should_be():
    rack = of_block(mixer_post_norm="layernorm", mlp_post_norm="rmsnorm", output_scale=0.25).eval()
    (block,) = rack.stacks[0].blocks
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    middle = x + 0.25 * block.mixer_post_norm(block.mixer(block.mixer_norm(x)))
    torch.testing.assert_close(block(x), middle + 0.25 * block.mlp_post_norm(block.mlp(block.mlp_norm(middle))))


@pytest.mark.parametrize(
    "change",
    [
        {"mixer_post_norm": "rmsnorm"},
        {"mlp_post_norm": "rmsnorm"},
        {"output_scale": 0.5},
        {"dropout": 0.5},
        {"mixer_norm": None},
        {"mlp_norm": None},
        {"norm": "layernorm", "mixer_norm": "rmsnorm"},
        {"mixer": None},
        {"mlp": None},
    ],
    ids=str,
)
def test_every_setting_of_a_block_changes_its_function(change):
    torch.manual_seed(0)
    plain, changed = of_block(), of_block(**change)
    changed.load_state_dict(plain.state_dict(), strict=False)
    nn.init.normal_(plain.embedding.weight, mean=0.5)  # where a norm makes a difference
    changed.embedding.load_state_dict(plain.embedding.state_dict())
    assert not torch.allclose(plain(TOKENS), changed(TOKENS))


def test_dropout_drops_in_training_alone():
    rack = of_block(dropout=0.5)
    assert not torch.equal(rack(TOKENS), rack(TOKENS))
    rack.eval()
    assert torch.equal(rack(TOKENS), rack(TOKENS))
    assert torch.equal(rack(TOKENS), of_block()(TOKENS))


def test_the_norm_of_the_head_is_the_racks():
    assert type(built(layers=["attention"], norm="layernorm").head.norm).__name__ == "LayerNorm"
    assert type(built(layers=["attention"]).head.norm).__name__ == "RMSNorm"


@pytest.mark.parametrize("head", ["language_model", "autoencoder"])
def test_a_rack_without_norms_runs(head):
    rack = built(layers=["attention", "mlp"], norm=None, head=head, max_length=12)
    assert rack(TOKENS).shape == (2, 12, 8)
    assert not [module for module in rack.modules() if "norm" in type(module).__name__.lower()]


def test_shared_blocks_are_one():
    shared = {"mixer": ATTENTION, "mlp": MLP, "share": "one"}
    own = {"mixer": ATTENTION, "mlp": MLP}
    rack = built(stacks=[{"blocks": [shared, own, shared]}, {"n_blocks": 1, "block": shared}])
    first, second, third = rack.stacks[0].blocks
    assert first is third is rack.stacks[1].blocks[0]
    assert second is not first
    assert n_parameters(rack) == n_parameters(built(stacks=[{"blocks": [own, own]}]))
    rack(TOKENS).sum().backward()
    assert first.mlp.up.weight.grad is not None


def test_shared_blocks_compute_what_equal_blocks_do():
    shared = {"mixer": ATTENTION, "mlp": MLP, "share": "one"}
    together = built(stacks=[{"n_blocks": 2, "block": shared}])
    apart = built(stacks=[{"n_blocks": 2, "block": {"mixer": ATTENTION, "mlp": MLP}}])
    apart.load_state_dict(together.state_dict())
    assert torch.equal(together(TOKENS), apart(TOKENS))


def test_tied_embeddings_are_one_tensor():
    tied, untied = (built(layers=["attention"], tie_embeddings=tie) for tie in (True, False))
    assert tied.head.output.weight is tied.embedding.weight
    assert n_parameters(untied) - n_parameters(tied) == 8 * 16
    tied(TOKENS).sum().backward()
    assert tied.embedding.weight.grad.abs().sum() > 0
    assert tied.embedding.weight.std() < 0.05
    assert built(layers=["attention"], tie_embeddings=True, init_std=1.0).embedding.weight.std() < 0.05


def test_the_same_seed_gives_the_same_weights_and_no_other_generator_moves():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = of_block(seed=3)
    assert torch.equal(torch.rand(2), expected)
    second, other = of_block(seed=3), of_block(seed=4)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert not torch.equal(first.stacks[0].blocks[0].mlp.up.weight, other.stacks[0].blocks[0].mlp.up.weight)


def test_how_a_rack_starts():
    rack = built(
        d_model=128, vocab_size=500, layers=["mh-attention", "swiglu", "mamba"], head={"kind": "language_model", "bias": True}
    )
    assert rack.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    default = 1 / (3 * 128) ** 0.5  # torch's own: uniform up to 1 / sqrt(inputs)
    for module in (rack.stacks[0].blocks[0].mixer.query, rack.stacks[0].blocks[0].mlp.up, rack.head.output):
        assert module.weight.std().item() == pytest.approx(default, rel=0.05)
    kept = []
    for name, module in rack.named_modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            if getattr(module.bias, "keep_init", False):
                kept.append(name)
                assert module.bias.abs().min() > 0
            else:
                assert not module.bias.any(), name
    assert len(kept) == 1  # mamba's time steps


def test_init_std_draws_all_linears_but_those_that_are_kept():
    rack = built(d_model=128, layers=["mh-attention", "swiglu", "mamba"], init_std=0.1, vocab_size=500)
    plain = built(d_model=128, layers=["mh-attention", "swiglu", "mamba"], vocab_size=500)
    assert rack.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    linears = [module for module in rack.modules() if isinstance(module, nn.Linear)]
    assert len(linears) > 8
    for module in linears:
        if not getattr(module.weight, "keep_init", False):
            assert module.weight.std().item() == pytest.approx(0.1, rel=0.1)
    for module, other in zip(linears, (module for module in plain.modules() if isinstance(module, nn.Linear)), strict=True):
        if getattr(module.bias, "keep_init", False):
            # The draw moved on, the distribution did not.
            assert F.softplus(module.bias).min() > 5e-4
            assert F.softplus(other.bias).max() < 0.2


def autoencoder(**keys):
    head = {"kind": "autoencoder", **keys}
    return built(layers=[ATTENTION, MLP], head=head, max_length=9)


def test_the_autoencoder_decodes_as_many_positions_as_the_rack_is_long():
    rack = autoencoder()
    for time in (1, 5, 9, 12):
        assert rack(TOKENS[:, :time]).shape == (2, 9, 8)
    assert not torch.allclose(rack(TOKENS)[:, 0], rack(TOKENS)[:, 1])


@pytest.mark.parametrize(("pooling", "seen"), [("last", {8}), ("first", {0}), ("mean", set(range(9)))])
def test_what_the_autoencoder_pools(pooling, seen):
    head = autoencoder(pooling=pooling).head
    x = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(head(x).square().sum(), x)
    assert {place for place in range(9) if gradient[0, place].abs().sum() > 0} == seen


def test_the_position_table_is_sines_then_cosines():
    table = autoencoder().head.positions
    assert table.shape == (9, 16)
    for place in range(9):
        for channel in range(8):
            angle = torch.tensor(place / 10_000.0 ** (channel / 7))
            assert table[place, channel].item() == pytest.approx(angle.sin().item(), abs=1e-5)
            assert table[place, 8 + channel].item() == pytest.approx(angle.cos().item(), abs=1e-5)
    assert "head.positions" not in autoencoder().state_dict()


def test_a_rack_is_saved_by_torch_as_well():
    first, second = of_block(seed=1), of_block(seed=2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(TOKENS), second(TOKENS))


@pytest.mark.parametrize("head", ["language_model", "autoencoder"])
def test_a_narrow_residual_stream_changes_rounding_alone(head):
    keys = {"layers": ["mh-attention", "swiglu", "mamba"], "d_model": 128, "max_length": 12, "head": head}
    wide, narrow = built(**keys), built(**keys, residual_dtype="bfloat16")
    types = []
    narrow.blocks()[1].register_forward_pre_hook(lambda _, inputs: types.append(inputs[0].dtype))
    tokens = torch.arange(24).view(2, 12) % 5
    logits = narrow(tokens)
    assert types == [torch.bfloat16]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, wide(tokens))
    torch.testing.assert_close(logits, wide(tokens), rtol=0.05, atol=0.02)
    if head == "language_model":
        state, stepped = narrow.initial_state(2), []
        for position in tokens.unbind(1):
            step, state = narrow.step(position, state)
            stepped.append(step)
        torch.testing.assert_close(torch.stack(stepped, 1), logits, rtol=0.05, atol=0.02)


def two_stacks(**keys):
    moe = {"kind": "moe", "n_experts": 4}
    stacks = [
        {"n_blocks": 2, "block": {"mixer": ATTENTION, "mlp": moe, "dropout": 0.2}},
        {"n_blocks": 1, "block": {"mixer": "lru"}},
    ]
    return built(stacks=stacks, max_length=12, **keys)


def test_a_rack_goes_on_from_hidden_states():
    rack = two_stacks().eval()
    expected = rack(TOKENS)
    x = rack.embed(TOKENS)
    assert torch.equal(rack(None, hidden=x), expected)
    for start in (1, 2):
        hidden = rack.run(x, stop=start)
        assert torch.equal(rack(None, hidden=hidden, start=start), expected)
        assert torch.equal(rack.run(hidden, start=start), rack.run(x))
    assert torch.equal(rack.run(x, start=1, stop=1), x)
    with pytest.raises(ValueError, match="start = 1: a rack starts from tokens at its first stack"):
        rack(TOKENS, start=1)


def test_pads_are_told_to_the_mixers_that_take_them():
    """The others are causal: what stands behind a text changes nothing in it."""
    names = {"attention": {"kind": "attention", "n_heads": 2, "causal": False}, "lru": {"kind": "lru"}, "mla": {"kind": "mla"}}
    choice = {"kind": "stochastic", "main": "attention", "mixers": names}
    rack = built(stacks=[{"blocks": [{"mixer": part, "mlp": MLP} for part in (*names.values(), choice)]}]).eval()
    attention_mask = torch.ones(TOKENS.shape, dtype=torch.bool)
    attention_mask[:, 8:] = False
    other = torch.where(attention_mask, TOKENS, 7)
    assert not torch.allclose(rack(TOKENS)[:, :8], rack(other)[:, :8])
    torch.testing.assert_close(
        rack(TOKENS, attention_mask=attention_mask)[:, :8], rack(other, attention_mask=attention_mask)[:, :8]
    )
    torch.testing.assert_close(rack(TOKENS, attention_mask=attention_mask)[:, :8], rack(TOKENS[:, :8]))
    torch.testing.assert_close(rack(TOKENS, attention_mask=torch.ones_like(attention_mask)), rack(TOKENS))


def saved_bytes(rack):
    """What a forward pass keeps for its gradient, weights left out."""
    weights, found = {parameter.untyped_storage().data_ptr() for parameter in rack.parameters()}, {}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: found.setdefault(id(tensor), tensor), lambda tensor: tensor):
        rack(TOKENS)
    return sum(tensor.nbytes for tensor in found.values() if tensor.untyped_storage().data_ptr() not in weights)


def test_checkpointing_keeps_less_and_changes_nothing():
    """Dropout and what the parts report included: computed anew, the mixture of experts reports to nobody."""
    found, kept = {}, {}
    for is_on in (False, True):
        rack = two_stacks()
        for stack in rack.stacks:
            stack.checkpointing = is_on
        torch.manual_seed(3)
        with collecting() as reports:
            logits = rack(TOKENS)
        reports.added_to(logits.square().mean()).backward()
        metrics = {name: value.item() for name, value in reports.metrics.items()}
        found[is_on] = [logits, *(parameter.grad for parameter in rack.parameters())], metrics
        kept[is_on] = saved_bytes(rack)
    assert kept[True] < 0.5 * kept[False]
    assert found[True][1] == found[False][1] != {}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[True][0], found[False][0], strict=True))


def test_checkpointing_is_for_every_gradient_and_no_other():
    """Also through a trunk that does not train and is not in training: below it is what learns."""
    kept = {}
    for is_on in (False, True):
        rack = two_stacks().eval()
        rack.stacks.requires_grad_(False)
        for stack in rack.stacks:
            stack.checkpointing = is_on
        kept[is_on] = saved_bytes(rack)
        rack.embedding.requires_grad_(False)
        with mock.patch("models.rack.modules.checkpoint", side_effect=AssertionError("there is no gradient to save for")):
            rack(TOKENS)
    assert kept[True] < 0.5 * kept[False]


def test_a_rack_is_told_the_time():
    time = {"n_steps": 3, "d_time": 4}
    rack, plain = two_stacks(time=time), two_stacks()
    assert torch.equal(rack.eval()(TOKENS, t=torch.tensor([0, 2])), plain.eval()(TOKENS)), (
        "it starts at zero, all else as without"
    )
    with torch.no_grad():
        rack.time_embedding.output.weight.normal_()
    early, late = (rack(TOKENS, t=torch.tensor([step, 1])) for step in (0, 2))
    assert not torch.allclose(early[0], late[0])
    assert torch.equal(early[1], late[1])
    assert torch.equal(rack(None, hidden=rack.embed(TOKENS, torch.tensor([0, 1]))), early)
    for call in (lambda: rack(TOKENS), lambda: rack.step(TOKENS[:, 0], rack.initial_state(2))):
        with pytest.raises(ValueError, match="it needs t, the time step of each sample"):
            call()
    with pytest.raises(ValueError, match="the rack has no time embedding"):
        plain(TOKENS, t=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="d_time = 5 must be even"):
        two_stacks(time={"n_steps": 3, "d_time": 5})


@pytest.mark.parametrize("residual_dtype", [None, "bfloat16"])
def test_time_is_learned_by_the_settings_of_its_own(residual_dtype):
    time = {"kind": "learned", "n_steps": 3, "d_time": 4, "lr_scale": 0.5, "parameters": {"hidden": {"lr_scale": 0}}}
    rack = two_stacks(time=time, residual_dtype=residual_dtype)
    rack(TOKENS, t=torch.tensor([0, 2])).square().sum().backward()
    scales = {name: getattr(parameter, "lr_scale", 1) for name, parameter in rack.time_embedding.named_parameters()}
    assert scales == {"table.weight": 0.5, "hidden.weight": 0, "hidden.bias": 0, "output.weight": 0.5, "output.bias": 0.5}
    assert rack.time_embedding.table.weight.grad[[0, 2]].abs().sum(1).min() > 0
    assert not rack.time_embedding.table.weight.grad[1].any()
