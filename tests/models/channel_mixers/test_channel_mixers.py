"""What every channel mixer and norm promises, and how the mixture of experts routes."""

import pytest
import torch
import torch.nn.functional as F

from models import CHANNEL_MIXERS, NORMS
from models.channel_mixers.moe import MoE
from models.rack.contracts import ChannelMixer
from tests.models.cases import CHANNEL_MIXER_CASES, D_MODEL, IDLE, build, gradients, noise, packed_equals_separate

each_mixer = pytest.mark.parametrize("options", CHANNEL_MIXER_CASES.values(), ids=CHANNEL_MIXER_CASES)
each_norm = pytest.mark.parametrize("kind", NORMS)


@each_mixer
@pytest.mark.parametrize("shape", [(), (3,), (2, 17)])
def test_any_leading_shape(options, shape):
    mixer = build(CHANNEL_MIXERS, options)
    assert isinstance(mixer, ChannelMixer)
    shape = (2, 17) if mixer.has_step else shape  # it looks along the time
    assert mixer(noise(*shape, D_MODEL)).shape == (*shape, D_MODEL)


@each_mixer
def test_positions_do_not_mix_but_with_the_one_before_if_told(options):
    mixer, x = build(CHANNEL_MIXERS, options), noise(2, 17, D_MODEL)
    first = 4 if mixer.has_step else 5
    torch.testing.assert_close(mixer(x)[:, 5:6], mixer(x[:, first:6])[:, -1:], rtol=1e-5, atol=1e-5)


@each_mixer
def test_stepping_gives_what_forward_gives(options):
    mixer, x = build(CHANNEL_MIXERS, options), noise(2, 17, D_MODEL)
    if not mixer.has_step:
        with pytest.raises(NotImplementedError, match=type(mixer).__name__):
            mixer.initial_state(2)
        return
    state, outputs = mixer.initial_state(2), []
    for position in x.unbind(1):
        output, state = mixer.step(position, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), mixer(x), rtol=1e-5, atol=1e-5)


@each_mixer
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_every_parameter_gets_a_finite_gradient(options, scale):
    for name, gradient in gradients(build(CHANNEL_MIXERS, options), scale * noise(2, 65, D_MODEL)).items():
        assert gradient.isfinite().all(), name
        assert scale > 1 or gradient.abs().sum() > 0, name


@each_mixer
def test_stacked_models_equal_separate_ones(options):
    packed_equals_separate([build(CHANNEL_MIXERS, options, seed=seed) for seed in range(2)], noise(2, 3, 5, D_MODEL))


@each_mixer
def test_builds_without_memory_and_runs_under_autocast(options):
    with torch.device("meta"):
        assert all(value.is_meta for value in build(CHANNEL_MIXERS, options).state_dict().values())
    mixer, x = build(CHANNEL_MIXERS, options), noise(2, 17, D_MODEL)
    with torch.autocast("cpu", torch.bfloat16):
        assert (mixer(x) - mixer(x).float()).abs().max() == 0
        assert all(gradient.isfinite().all() for gradient in gradients(mixer, x).values())


@each_mixer
def test_flops_are_linear_in_time(options):
    mixer = build(CHANNEL_MIXERS, options)
    assert type(mixer.flops(10)) is int
    assert mixer.flops(10) == 10 * mixer.flops(1)
    assert (mixer.flops(1) > 0) == (options["kind"] not in IDLE)


@pytest.mark.parametrize("n_active", [2, 3, 4])
def test_inactive_experts_weigh_exactly_nothing(n_active):
    mixer, x = MoE(16, n_experts=4, n_active=n_active, d_expert=3), noise(40, 16)
    weights = mixer.route(x)
    assert ((weights > 0).sum(-1) == n_active).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(40))
    chosen = mixer.router(x).topk(n_active).indices
    torch.testing.assert_close(weights.gather(-1, chosen), mixer.router(x).gather(-1, chosen).softmax(-1))


def test_inactive_experts_get_exactly_no_gradient():
    mixer, x = MoE(16, n_experts=4, n_active=2, d_expert=3), noise(1, 16)
    idle = mixer.route(x)[0] == 0
    found = gradients(mixer, x)
    for name in ("up.weight", "gate.weight"):
        assert (found[name].unflatten(0, (4, 3))[idle] == 0).all()
        assert (found[name].unflatten(0, (4, 3))[~idle] != 0).any()
    assert (found["down.weight"].unflatten(1, (4, 3))[:, idle] == 0).all()
    assert (found["router.weight"][idle] == 0).all()


def test_experts_are_summed_by_weight():
    mixer, x = MoE(16, n_experts=3, n_active=2, d_expert=4), noise(7, 16)
    parts = [part.unflatten(0, (3, 4)) for part in (mixer.up.weight, mixer.gate.weight, mixer.down.weight.mT)]
    experts = [((x @ up.mT) * F.gelu(x @ gate.mT)) @ down for up, gate, down in zip(*parts, strict=True)]
    expected = sum(mixer.route(x)[:, index, None] * expert for index, expert in enumerate(experts))
    torch.testing.assert_close(mixer(x), expected)


@each_norm
def test_norms(kind):
    norm, x = NORMS.build(NORMS.part(kind), d_model=D_MODEL), 100 * noise(2, 17, D_MODEL) + 3
    y = norm(x)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(2, 17), rtol=1e-3, atol=1e-3)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert all(gradient.isfinite().all() for gradient in gradients(norm, 0 * x).values())
    packed_equals_separate([norm, NORMS.build(NORMS.part(kind), d_model=D_MODEL)], torch.stack((x, x)))


def test_norms_by_formula():
    x = noise(4, D_MODEL) + 1
    rms, layer, unbiased = (
        NORMS.build(NORMS.part(part), d_model=D_MODEL)
        for part in ({"kind": "rmsnorm", "eps": 0.1}, {"kind": "layernorm", "eps": 0.1}, {"kind": "layernorm", "bias": False})
    )
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt())
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(layer(x), centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt())
    assert unbiased.bias is None
