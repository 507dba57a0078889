"""Multi-head latent attention: the expanded form by its formula, and the stepped one, which never forms a key."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import RackSpec
from models.linears.adapters import AdaptedLinear, Adapter
from models.mixers.mla import MLA
from models.ops.attention.rotary import rotate
from tests.models.cases import noise

SIZES = {"n_heads": 3, "d_head": 5, "d_rope": 4, "kv_rank": 7}


def normalised(norm, x):
    return norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()


def plain(mixer, x):
    """Head by head, position by position."""
    source = x if mixer.query_latent is None else normalised(mixer.query_norm, mixer.query_latent(x))
    latent = normalised(mixer.latent_norm, mixer.latent(x))
    places = torch.arange(x.shape[1])
    turned_key = rotate(mixer.key_rope(x), places, mixer.rope_base)
    heads = []
    for h in range(mixer.n_heads):
        own, turned = slice(h * mixer.d_head, (h + 1) * mixer.d_head), slice(h * mixer.d_rope, (h + 1) * mixer.d_rope)
        query = torch.cat((mixer.query(source)[..., own], rotate(mixer.query_rope(source)[..., turned], places, 10000.0)), -1)
        key, value = torch.cat((mixer.key_up(latent)[..., own], turned_key), -1), mixer.value_up(latent)[..., own]
        rows = []
        for t in range(x.shape[1]):
            scores = (query[:, t, None] * key[:, : t + 1]).sum(-1) / (mixer.d_head + mixer.d_rope) ** 0.5
            rows.append((scores.softmax(-1)[..., None] * value[:, : t + 1]).sum(1))
        heads.append(torch.stack(rows, 1))
    return mixer.output(torch.cat(heads, -1))


def stepped(mixer, x):
    state, outputs = mixer.initial_state(len(x)), []
    for position in x.unbind(1):
        output, state = mixer.step(position, state)
        outputs.append(output)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("query_rank", [None, 6])
@pytest.mark.parametrize("time", [1, 2, 17, 33])
def test_by_its_formula(time, query_rank):
    mixer, x = MLA(12, **SIZES, query_rank=query_rank).double(), noise(2, time, 12, dtype=torch.float64).requires_grad_()
    inputs = [x, *mixer.parameters()]
    outputs = mixer(x), plain(mixer, x), stepped(mixer, x)[0]
    weighting = noise(*x.shape, seed=2, dtype=torch.float64)
    found = [torch.autograd.grad((y * weighting).sum(), inputs, retain_graph=True) for y in outputs]
    for y, gradients in zip(outputs[1:], found[1:], strict=True):
        torch.testing.assert_close(outputs[0], y)
        torch.testing.assert_close(found[0], gradients)


def test_the_stepped_form_knows_biases_and_adapters():
    mixer, x = MLA(12, **SIZES), noise(2, 9, 12)
    for index, name in enumerate(("key_up", "value_up")):
        linear = mixer.get_submodule(name)
        linear.bias = torch.nn.Parameter(noise(linear.out_features, seed=index))
        adapter = Adapter(linear.in_features, linear.out_features, rank=2, alpha=3)
        torch.nn.init.normal_(adapter.up, generator=torch.Generator().manual_seed(index))
        setattr(mixer, name, AdaptedLinear(linear, {"lora": adapter}))
    torch.testing.assert_close(stepped(mixer, x)[0], mixer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_is_latents_and_shared_keys_of_the_precision_that_is_computed_in(dtype):
    mixer, x = MLA(12, **SIZES), noise(2, 9, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        _, (cache, _) = stepped(mixer, x)
    assert cache.shape == (2, 9, 7 + 4)
    assert cache.dtype == dtype
    assert mixer.state_size(9) == cache[0].numel()


@pytest.mark.parametrize("query_rank", [None, 6])
def test_operations_are_what_torch_counts(query_rank):
    with torch.device("meta"):
        mixer, x = MLA(12, **SIZES, query_rank=query_rank), torch.empty(1, 33, 12)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mixer(x)
    assert counter.get_total_flops() == mixer.flops(33)


def test_sizes():
    mixer = MLA(128, n_heads=8)
    assert (mixer.d_head, mixer.d_rope, mixer.kv_rank) == (16, 8, 32)
    for options, text in (
        ({"n_heads": 5}, "n_heads = 5 must divide d_model = 12"),
        ({"d_rope": 3}, "d_rope = 3 must be even"),
        ({"d_rope": 0}, "d_rope = 0 must be at least 1"),
        ({"kv_rank": 0}, "kv_rank = 0 must be at least 1"),
        ({"query_rank": 0}, "query_rank = 0 must be at least 1"),
        ({"rope_base": 0.0}, "rope_base = 0.0 positive"),
    ):
        with pytest.raises(ValueError, match=text):
            MLA(12, **options)


def test_an_override_may_say_what_is_the_default():
    block = {"mixer": {"kind": "mla", "causal": False}, "mlp": "swiglu"}
    spec = RackSpec(
        vocab_size=8, d_model=16, stacks=[{"n_blocks": 2, "block": block, "layers": {"1": {"mixer": {"causal": True}}}}]
    )
    again = RackSpec.model_validate(spec.to_dict())
    assert [each.mixer.causal for each in again.stacks[0].expanded()] == [False, True]
