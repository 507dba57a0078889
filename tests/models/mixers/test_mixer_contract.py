"""What every mixer promises: one body, every registered mixer runs through it."""

import pytest
import torch

from models import MIXERS
from models.rack.contracts import Mixer
from tests.models.cases import D_MODEL, IDLE, MIXER_CASES, build, gradients, noise, packed_equals_separate

LENGTHS = (1, 2, 17, 65)

each_mixer = pytest.mark.parametrize("options", MIXER_CASES.values(), ids=MIXER_CASES)


def stepped(mixer, x):
    """What `forward` gives, position by position."""
    state, outputs = mixer.initial_state(len(x)), []
    for position in x.unbind(1):
        output, state = mixer.step(position, state)
        outputs.append(output)
    return torch.stack(outputs, 1)


@each_mixer
def test_shape(options):
    mixer = build(MIXERS, options)
    assert isinstance(mixer, Mixer)
    for time in LENGTHS:
        assert mixer(noise(2, time, D_MODEL)).shape == (2, time, D_MODEL)


@each_mixer
def test_only_later_outputs_depend_on_a_position(options):
    mixer, x = build(MIXERS, options), noise(2, 65, D_MODEL)
    before = mixer(x)
    for place in (0, 16, 64):
        changed = x.clone()
        changed[:, place] += 1
        after = mixer(changed)
        torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=1e-5)
        assert (before[:, place] - after[:, place]).abs().amax() > 1e-5, place


@each_mixer
def test_the_past_is_used(options):
    mixer, x = build(MIXERS, options), noise(2, 65, D_MODEL)
    changed = x.clone()
    changed[:, 62] += 1
    is_used = (mixer(x)[:, 64] - mixer(changed)[:, 64]).abs().amax() > 1e-7
    assert is_used == (options["kind"] not in IDLE)


@each_mixer
def test_a_prefix_gives_a_prefix(options):
    mixer, x = build(MIXERS, options), noise(2, 70, D_MODEL)
    whole = mixer(x)
    for time in LENGTHS:
        torch.testing.assert_close(whole[:, :time], mixer(x[:, :time]), rtol=1e-5, atol=1e-5)


@each_mixer
def test_every_parameter_gets_a_finite_gradient(options):
    for name, gradient in gradients(build(MIXERS, options), noise(2, 65, D_MODEL)).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name


@each_mixer
@pytest.mark.parametrize("scale", [0.0, 100.0])
def test_extreme_inputs_stay_finite(options, scale):
    mixer, x = build(MIXERS, options), scale * noise(2, 65, D_MODEL)
    assert mixer(x).isfinite().all()
    for name, gradient in gradients(mixer, x).items():
        assert gradient.isfinite().all(), name


@each_mixer
def test_same_seed_same_numbers(options):
    first, second, x = build(MIXERS, options, seed=3), build(MIXERS, options, seed=3), noise(2, 17, D_MODEL)
    assert torch.equal(first(x), first(x))
    assert torch.equal(first(x), second(x))


@each_mixer
def test_builds_without_memory(options):
    with torch.device("meta"):
        mixer = build(MIXERS, options)
    real = {name: value.shape for name, value in build(MIXERS, options).state_dict().items()}
    assert {name: value.shape for name, value in mixer.state_dict().items()} == real
    assert all(value.is_meta for value in mixer.state_dict().values())
    assert mixer(torch.empty(2, 17, D_MODEL, device="meta")).shape == (2, 17, D_MODEL)


@each_mixer
def test_costs_are_whole_numbers(options):
    mixer = build(MIXERS, options)
    for value in (mixer.state_size(65), mixer.flops(65)):
        assert type(value) is int
        assert (value > 0) == (options["kind"] not in IDLE)
    assert mixer.state_size(65) >= mixer.state_size(17)
    assert mixer.flops(65) > mixer.flops(17) or options["kind"] in IDLE


@each_mixer
@pytest.mark.parametrize("time", [1, 65])
def test_stacked_models_equal_separate_ones(options, time):
    modules = [build(MIXERS, options, seed=seed) for seed in range(2)]
    packed_equals_separate(modules, noise(2, 3, time, D_MODEL))


@each_mixer
def test_runs_under_autocast(options):
    """To the precision of the projections: what has a scale of its own, such as time, must not be rounded to bfloat16."""
    mixer, x = build(MIXERS, options, max_length=512), noise(2, 512, D_MODEL)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
        found = gradients(mixer, x)
    assert (y - mixer(x)).norm() < 0.015 * mixer(x).norm()
    assert all(gradient.isfinite().all() for gradient in found.values())


@each_mixer
def test_stepping_gives_what_forward_gives(options):
    mixer, x = build(MIXERS, options), noise(2, 70, D_MODEL)
    if not mixer.has_step:
        with pytest.raises(NotImplementedError, match=type(mixer).__name__):
            mixer.initial_state(2)
        return
    torch.testing.assert_close(stepped(mixer, x), mixer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [MIXER_CASES[kind] for kind in MIXERS], ids=MIXERS)  # options change no state's rule
@torch.no_grad()
def test_stepping_does_not_drift(options):
    """What keeps a state of one size reads at the end what it has carried along from the start."""
    mixer, x = build(MIXERS, options), noise(1, 1024, D_MODEL)
    if mixer.has_step and mixer.state_size(1) == mixer.state_size(1024):
        torch.testing.assert_close(stepped(mixer, x), mixer(x), rtol=1e-5, atol=1e-5)
