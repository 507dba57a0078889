"""New mixers from a trained attention: head by head, groups respected, nothing dead, nothing dropped in silence."""

import pytest
import torch

from configs import ConfigError
from models import MIXERS, RackSpec, Supernet
from models.linears.adapters import AdaptedLinear, Adapter
from models.supernet.from_attention import convert, initialise_supernet
from tests.models.cases import D_MODEL, build, noise

N_HEADS, D_HEAD = 4, 8
X = noise(2, 70, D_MODEL)
GROUPED = {"kind": "attention", "n_heads": N_HEADS, "n_kv_heads": 2}
TARGETS = {
    "attention": {"kind": "attention", "n_heads": N_HEADS},
    "window": {"kind": "attention", "n_heads": N_HEADS, "n_kv_heads": 2, "window": 9},
    "convolved": {"kind": "attention", "n_heads": N_HEADS, "d_conv": 4},
    "linear": {"kind": "linear_attention", "n_heads": N_HEADS},
    "learned-map": {"kind": "linear_attention", "n_heads": N_HEADS, "feature_map": "product", "d_conv": 2},
    "gla": {"kind": "gated_linear_attention", "n_heads": N_HEADS},
    "gla-convolved": {"kind": "gated_linear_attention", "n_heads": N_HEADS, "d_conv": 4},
    "gdn": {"kind": "gated_delta_net", "n_heads": N_HEADS},
    "gdn-plain": {"kind": "gated_delta_net", "n_heads": N_HEADS, "d_conv": 0},
    "retention": {"kind": "retention", "n_heads": N_HEADS},
    "rwkv6": {"kind": "rwkv6", "n_heads": N_HEADS},
}
each_target = pytest.mark.parametrize("options", TARGETS.values(), ids=TARGETS)


def attention(options=GROUPED, **more):
    """A trained one: no parameter is at a special value."""
    mixer = build(MIXERS, {**options, **more}, seed=5)
    with torch.no_grad():
        for index, parameter in enumerate(mixer.parameters()):
            parameter.add_(noise(*parameter.shape, seed=index), alpha=0.2)
    return mixer


def head_of(tensor, head):
    return tensor[head * D_HEAD : (head + 1) * D_HEAD]


@each_target
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_heads_are_mapped_one_by_one_and_groups_respected(options, n_kv_heads):
    """Not tiled: with two groups of two, heads 0 and 1 share the first key head, and heads 2 and 3 the second."""
    if options.get("n_kv_heads", n_kv_heads) < n_kv_heads:
        return
    source, target = attention(n_kv_heads=n_kv_heads), build(MIXERS, options)
    convert(source, target)
    assert torch.equal(target.query.weight, source.query.weight)
    assert torch.equal(target.output.weight, source.output.weight)
    for name in ("key", "value"):
        new = getattr(target, name).weight
        for head in range(N_HEADS):
            ours = head * len(new) // (N_HEADS * D_HEAD) if len(new) < D_MODEL else head
            assert torch.equal(head_of(new, ours), head_of(getattr(source, name).weight, head * n_kv_heads // N_HEADS))


@pytest.mark.parametrize("n_kv_heads", [2, 4])
@pytest.mark.parametrize("more", [{}, {"window": 70}, {"d_conv": 3}], ids=str)
def test_an_attention_made_of_an_attention_is_the_same_function(n_kv_heads, more):
    source, target = attention(), build(MIXERS, {**GROUPED, "n_kv_heads": n_kv_heads, **more}, seed=9)
    convert(source, target)
    torch.testing.assert_close(target(X), source(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d_conv", [3, 5])
def test_biases_and_short_convolutions_are_kept(d_conv):
    source = attention(bias=True, d_conv=3)
    target = build(MIXERS, {**GROUPED, "n_kv_heads": 4, "bias": True, "d_conv": d_conv}, seed=9)
    done = convert(source, target)
    torch.testing.assert_close(target(X), source(X), rtol=1e-5, atol=1e-5)
    assert set(done.copied) == {name for name, _ in target.named_parameters()}
    assert (done.set, done.kept, done.dropped) == ((), (), ())


def test_a_bias_that_the_attention_lacks_is_zero_and_one_that_the_target_lacks_is_told():
    source, target = attention(), build(MIXERS, {**GROUPED, "bias": True})
    target.key.bias.data.fill_(3)
    assert set(convert(source, target).set) == {f"{name}.bias" for name in ("query", "key", "value", "output")}
    torch.testing.assert_close(target(X), source(X), rtol=1e-5, atol=1e-5)
    done = convert(attention(bias=True), build(MIXERS, TARGETS["gdn"]))
    assert done.dropped == ("key.bias", "output.bias", "query.bias", "value.bias")
    assert "dropped key.bias, output.bias" in str(done)


@each_target
def test_every_parameter_is_accounted_for(options):
    target = build(MIXERS, options)
    before = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    done = convert(attention(), target)
    assert sorted([*done.copied, *done.set, *done.kept]) == sorted(before)
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in done.kept), name
        assert parameter.requires_grad


@each_target
def test_a_converted_mixer_is_not_dead(options):
    source, target = attention(), build(MIXERS, options)
    convert(source, target)
    size = target(X).square().mean().sqrt() / source(X).square().mean().sqrt()
    assert 0.1 < size < 30
    target(X).square().sum().backward()
    for name, parameter in target.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def seen_after(mixer, n_positions):
    """How much of a change at position 0 is left in the output `n_positions` later, by what it is right after."""
    x = noise(1, n_positions + 1, D_MODEL, seed=3)
    changed = x.clone()
    changed[:, 0] += 3 * noise(D_MODEL, seed=4)
    difference = (mixer(x) - mixer(changed))[0].abs().mean(-1)
    return (difference[-1] / difference[1:5].mean()).item()


def test_a_converted_memory_is_long():
    """Of the gated kinds, gated linear attention: the delta rule forgets by writing over what it held as well."""
    fresh, converted = (build(MIXERS, TARGETS["gla"]) for _ in range(2))
    convert(attention(), converted)
    assert seen_after(converted, 400) > 1e-3
    assert seen_after(converted, 400) > 10 * seen_after(fresh, 400)


def test_how_long_is_what_was_asked_for():
    zeros = torch.zeros(1, 1, D_MODEL)
    gla, gdn = build(MIXERS, TARGETS["gla"]), build(MIXERS, TARGETS["gdn"])
    for n_positions in (16, 1024, 100_000):
        assert gla.set_memory_length(n_positions) == ("decay_up.bias",)
        assert gdn.set_memory_length(n_positions) == ("dt_bias",)
        torch.testing.assert_close(gla._log_decay(zeros), torch.full((1, 1, D_MODEL), -1 / n_positions), rtol=1e-3, atol=0)
        torch.testing.assert_close(
            gdn._rate_and_decay(zeros)[1], torch.full((1, 1, N_HEADS), -1 / n_positions), rtol=1e-3, atol=0
        )
    rate, _ = gdn._rate_and_decay(X)
    assert 0.1 < rate.min() < rate.max() < 0.9
    assert build(MIXERS, "mamba").set_memory_length(100) == ()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "mamba"}, "Mamba cannot start from this attention: it has no query, key, value"),
        ({"kind": "hyena"}, "Hyena cannot start from this attention: it has no query, key, value"),
        ({"kind": "gated_delta_net", "n_heads": 2}, "n_heads = 2, not 4; query heads of size 16, not 8; key heads of size 16"),
        ({"kind": "gated_delta_net", "n_heads": 4, "expand_v": 2.0}, "attention: value heads of size 16, not 8"),
        ({"kind": "gated_linear_attention", "n_heads": 4, "expand_k": 0.5}, "query heads of size 4, not 8; key heads of size 4"),
        ({"kind": "attention", "n_heads": 4, "n_kv_heads": 1}, "n_kv_heads = 1 is no multiple of 2"),
        ({"kind": "linear_attention", "n_heads": 4, "d_conv": 2}, "d_conv = 2, less than 3"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_and_nothing_changed(options, text):
    target = build(MIXERS, options)
    before = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    with pytest.raises(ConfigError) as caught:
        convert(attention(d_conv=3), target)
    assert text in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.named_parameters())


def test_another_width_does_not_fit():
    with pytest.raises(ConfigError, match="d_model = 64, not 32"):
        convert(attention(), build(MIXERS, {"kind": "attention", "n_heads": 8}, d_model=64))


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if kind != "stochastic"])
def test_every_kind_starts_from_an_attention_or_says_why_not(kind):
    """Of one head and of four, as far as the kind has any."""
    for heads in ({}, {"n_heads": 4}):
        if heads and "n_heads" not in MIXERS.spec_of(kind).model_fields:
            continue
        source, target = attention({"kind": "attention", **heads}), build(MIXERS, {"kind": kind, **heads})
        try:
            done, refusal = convert(source, target), ""
        except ConfigError as error:
            done, refusal = None, str(error)
        assert (" cannot start from this attention: " in refusal) == (done is None)
        if done is not None:
            assert {"query.weight", "key.weight", "value.weight", "output.weight"} <= set(done.copied)
            assert torch.equal(target.value.weight, source.value.weight)
        assert target(X).isfinite().all()


def adapted(mixer, seed):
    """The mixer with two adapters on every projection, that change what it does, if there is a seed."""
    for index, name in enumerate(("query", "key", "value", "output")):
        linear = getattr(mixer, name)
        sizes = {"rank": 2, "alpha": 3.0, "rslora": True}
        adapters = {each: Adapter(linear.in_features, linear.out_features, **sizes) for each in ("lora", "other")}
        for number, adapter in enumerate(adapters.values()):
            adapter.up.data.copy_(noise(*adapter.up.shape, seed=seed + 2 * index + number) if seed else adapter.up)
        setattr(mixer, name, AdaptedLinear(linear, adapters))
    return mixer


@pytest.mark.parametrize("is_target_adapted", [False, True])
@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_what_adapters_add_is_in_the_converted_weights(n_kv_heads, is_target_adapted):
    source, target = adapted(attention(), seed=1), build(MIXERS, {**GROUPED, "n_kv_heads": n_kv_heads}, seed=9)
    assert (source(X) - attention()(X)).abs().max() > 0.1
    if is_target_adapted:
        adapted(target, seed=0)
    done = convert(source, target)
    torch.testing.assert_close(target(X), source(X), rtol=1e-4, atol=1e-4)
    assert done.copied == ("query.weight", "key.weight", "value.weight", "output.weight")
    assert len(done.kept) == 16 * is_target_adapted
    assert done.dropped == ()


MIXED = {"kind": "stochastic", "main": "attention", "mixers": {"mamba": "mamba", **TARGETS, "attention": GROUPED}}
NARROW = {"kind": "mlp", "d_ff": 8}
MLPS = {"kind": "stochastic", "main": "wide", "mixers": {"narrow": NARROW, "wide": {"kind": "swiglu"}, "none": None}}
TOKENS = torch.arange(24).view(2, 12) % 7


def space(**keys):
    stack = {"n_blocks": 2, "block": {"mixer": MIXED, "mlp": MLPS}}
    return RackSpec(**{"vocab_size": 8, "d_model": D_MODEL, "stacks": [stack], **keys})


@pytest.mark.parametrize("tie", [True, False])
def test_a_supernet_starts_from_a_trained_rack(tie):
    spec = space(tie_embeddings=tie)
    trained = spec.place(Supernet(spec).main).build(seed=11).eval()
    supernet = Supernet(spec, seed=3)
    fresh = {name: value.clone() for name, value in supernet.state_dict().items()}
    origins = initialise_supernet(supernet, trained.state_dict())
    supernet.eval()
    assert torch.equal(supernet(TOKENS), trained(TOKENS))
    assert [(origin.slot, origin.name) for origin in origins] == [(slot, name) for slot in supernet.slots for name in slot.names]
    texts = {origin.name: origin.text for origin in origins if origin.slot.layer == 1}
    assert texts["attention"] == texts["wide"] == "trained"
    assert texts["gdn"].startswith("from the attention: copied query.weight, key.weight, value.weight, output.weight; set ")
    assert texts["mamba"] == "its own: Mamba cannot start from this attention: it has no query, key, value"
    assert texts["narrow"] == "its own: MLP cannot start from this SwiGLU: it is of another kind"
    assert texts["none"].startswith("its own: only mixers can start from the main choice")
    for name, value in supernet.state_dict().items():
        if ".mamba." in name or ".narrow." in name:
            assert torch.equal(value, fresh[name]), name
    second = supernet.rack.blocks()[1].mixer.mixers
    assert torch.equal(second["gdn"].query.weight, trained.blocks()[1].mixer.query.weight)
    supernet.activate("window, wide, attention, wide")
    assert not torch.equal(supernet(TOKENS), trained(TOKENS))
    supernet.activate("gdn, wide, gla, wide")
    assert supernet(TOKENS).isfinite().all()


def test_a_trained_rack_of_another_placement_is_refused_and_nothing_changed():
    supernet = Supernet(space())
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    for other, text in (
        (supernet.space.place("gdn, wide, attention, wide").build(), "'stacks.0.blocks.0.mixer.A_log' is no part of one"),
        (space(vocab_size=9).place(supernet.main).build(), r"'embedding.weight' is \[9, 32\], not \[8, 32\]"),
        (supernet.space.place("attention, none, attention, wide").build(), "'stacks.0.blocks.0.mlp.down.weight' is missing"),
    ):
        with pytest.raises(ConfigError, match=f"no rack of the main placement: {text}"):
            initialise_supernet(supernet, other.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
