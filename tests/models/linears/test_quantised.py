"""Stored weights of linears: errors, bits, gradients, states, adapters on top, and training for them."""

import copy
import math
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from configs.load import validate
from models import CHANNEL_MIXERS, MIXERS, RackSpec
from models.assembly.quantise import fake_quantise, memory_bytes, quantise
from models.linears import nf4, nvfp4
from models.linears.adapters import AdaptedLinear, Adapter
from models.linears.convert import dequantised, fake_quantised, quantised, with_adapters
from models.linears.fake_quantised import FakeQuantisedLinear
from models.linears.formats import FORMATS
from models.linears.multiply_adds import multiply_adds
from models.linears.quantised import QuantisedLinear
from models.rack.contracts import Mixer
from tests.models.cases import CHANNEL_MIXER_CASES, D_MODEL, MIXER_CASES, build, noise

ERRORS = {"nf4": 0.092, "nvfp4": 0.095, "fp8": 0.026, "bfloat16": 0.0017, "half": 0.0002}
BITS = {"nf4": 4.13, "nvfp4": 4.5, "fp8": 8, "bfloat16": 16, "half": 16}
TOKENS = torch.arange(24).view(2, 12) % 7
LORA = {"rank": 2}


@pytest.fixture(params=[*FORMATS, "nf4 emulated"])
def name(request, monkeypatch):
    """Every format, and what stands in for bitsandbytes."""
    if request.param == "nf4 emulated":
        monkeypatch.setattr(nf4, "_bitsandbytes", lambda: None)
    return request.param.split()[0]


def dense(d_in=48, d_out=20, *, bias=False, std=0.02, seed=1):
    linear = nn.Linear(d_in, d_out, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(std * noise(d_out, d_in, seed=seed))
        if bias:
            linear.bias.copy_(noise(d_out, seed=seed + 1))
    return linear


def spec(**keys):
    blocks = [
        {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 24}},
        {"mixer": {"kind": "gated_delta_net", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 24}},
        {"mixer": {"kind": "mla", "n_heads": 2}},
    ]
    return validate(RackSpec, {"vocab_size": 8, "d_model": 16, "max_length": 16, "stacks": [{"blocks": blocks}], **keys}, "rack")


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_errors_and_bits_are_those_of_the_format(name, std):
    linear = dense(512, 384, std=std)
    stored = quantised(linear, name)
    assert relative_error(stored.weight, linear.weight) == pytest.approx(ERRORS[name], rel=0.05)
    assert 8 * memory_bytes(stored) / linear.weight.numel() == pytest.approx(BITS[name], abs=0.01)


@pytest.mark.parametrize("bias", [False, True])
def test_it_computes_and_passes_gradients_as_the_dense_linear_of_what_is_stored(name, bias):
    stored = quantised(dense(bias=bias), name)
    reference = copy.deepcopy(dequantised(stored))
    x, grad = noise(2, 5, 48), noise(2, 5, 20, seed=3)
    for linear in (stored, reference):
        linear.x = x.clone().requires_grad_()
        linear.y = linear(linear.x)
        linear.y.backward(grad)
    torch.testing.assert_close(stored.y, reference.y, rtol=1e-6, atol=1e-6)
    assert torch.equal(stored.x.grad, reference.x.grad)
    assert not bias or torch.equal(stored.bias.grad, reference.bias.grad)


def test_the_gradient_of_a_product_does_not_keep_the_weight(name):
    stored, kept = quantised(dense(64, 64), name), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        stored(noise(3, 64).requires_grad_())
    assert sum(tensor.nbytes for tensor in kept) == memory_bytes(stored)


def test_the_gradient_is_there_after_an_evaluation_pass_and_after_a_reload(name):
    stored, x = quantised(dense(), name), noise(5, 48)
    before = state(stored)
    (expected,) = torch.autograd.grad(stored(x.requires_grad_()).square().sum(), x)
    stored.eval()
    with torch.no_grad():
        stored(x)
    with torch.inference_mode():
        stored(x.detach())
    assert_same(state(stored), before)
    for _ in range(2):
        for mode in (False, True):
            (found,) = torch.autograd.grad(stored.train(mode)(x).square().sum(), x)
            assert torch.equal(found, expected)
        stored.load_state_dict(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_in_the_precision_of_its_input_or_autocast(name, dtype):
    stored, x = quantised(dense(bias=True), name), noise(5, 48)
    reference = dequantised(stored)
    half = F.linear(x.to(dtype), reference.weight.to(dtype)) + reference.bias.to(dtype)
    assert torch.equal(stored(x.to(dtype)), half)
    assert stored.bias.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        found, expected = stored(x.requires_grad_()), reference(x)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)
    (gradient,) = torch.autograd.grad(found.float().sum(), x)
    (other,) = torch.autograd.grad(expected.float().sum(), x)
    torch.testing.assert_close(gradient, other)


def test_a_cast_leaves_what_is_stored_and_is_the_type_of_the_weight(name):
    stored = quantised(dense(), name)
    before, weight = state(stored), stored.weight
    stored.half().bfloat16()
    assert_same(state(stored), before)
    assert stored.weight.dtype == torch.bfloat16
    assert torch.equal(stored.float().weight, weight)
    assert torch.equal(stored.double()(noise(3, 48, dtype=torch.float64)), noise(3, 48, dtype=torch.float64) @ stored.weight.mT)


def test_a_state_goes_through_safetensors_pickle_and_copies(name):
    first, second = spec().build(0), spec().build(1)
    for rack in (first, second):
        quantise(rack, name)
    second.load_state_dict(load(save(first.state_dict())))
    for rack in (second, pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert_same(rack.state_dict(), first.state_dict())
        assert torch.equal(rack(TOKENS), first(TOKENS))


@pytest.mark.parametrize(("of", "into"), [("half", "bfloat16"), ("nf4", "nvfp4"), ("nvfp4", "fp8")])
def test_a_state_of_another_format_is_refused(of, into):
    with pytest.raises(RuntimeError, match=r"not as torch.float16|Missing key"):
        quantised(dense(), into).load_state_dict(quantised(dense(), of).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        quantised(dense(), into).load_state_dict(dense().state_dict())


def test_the_linears_below_a_module_are_stored_and_nothing_else(name):
    rack, untouched = spec().build(), spec().build()
    linears = {name for name, part in rack.stacks.named_modules(prefix="stacks") if isinstance(part, nn.Linear)}
    before = memory_bytes(rack)
    done = quantise(rack, name)
    assert set(done.linears) == linears
    assert done.format == name
    assert (done.bytes_before, done.bytes_after) == (before, memory_bytes(rack))
    assert done.bytes_after < before
    replaced = {f"{each}.weight" for each in linears}
    parameters = dict(untouched.named_parameters())
    assert {each for each, _ in rack.named_parameters()} == parameters.keys() - replaced
    assert all(torch.equal(parameter, parameters[each]) for each, parameter in rack.named_parameters())
    assert quantise(rack, name).linears == ()
    for path in linears:
        linear = rack.get_submodule(path)
        assert multiply_adds(linear) == multiply_adds(untouched.get_submodule(path))
        untouched.get_submodule(path).weight.data.copy_(linear.weight)
    torch.testing.assert_close(rack(TOKENS), untouched(TOKENS))


@pytest.mark.parametrize("case", [*MIXER_CASES, *CHANNEL_MIXER_CASES])
def test_every_part_computes_with_stored_weights(case):
    registry, cases = (MIXERS, MIXER_CASES) if case in MIXER_CASES else (CHANNEL_MIXERS, CHANNEL_MIXER_CASES)
    part, reference = (build(registry, cases[case]).eval() for _ in range(2))
    x = noise(2, 7, D_MODEL)
    for name in quantise(part, "nf4").linears:
        reference.get_submodule(name).weight.data.copy_(part.get_submodule(name).weight)
    torch.testing.assert_close(part(x), reference(x))
    if isinstance(part, Mixer):
        assert part.flops(7) == reference.flops(7)
    if isinstance(part, Mixer) and part.has_step:
        states = [each.initial_state(2) for each in (part, reference)]
        for position in range(3):
            (y, states[0]), (expected, states[1]) = (
                each.step(x[:, position], memory) for each, memory in zip((part, reference), states, strict=True)
            )
            torch.testing.assert_close(y, expected)


def test_one_linear_at_two_places_stays_one():
    shared = dense(16, 16)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    assert quantise(module, "nf4").linears == ("0", "2")
    assert module[0] is module[2]
    assert memory_bytes(module) == memory_bytes(module[0])


def test_what_cannot_be_is_refused_and_changes_nothing():
    module = nn.Sequential(dense(), nn.ReLU())
    with pytest.raises(ValueError, match="format = 'int4' is not known: choose one of nf4, nvfp4"):
        quantise(module, "int4")
    with pytest.raises(ValueError, match="one itself: use quantised"):
        quantise(module[0], "nf4")
    quantise(module, "nf4")
    for refuse in (quantise, fake_quantise):
        with pytest.raises(ValueError, match=r"nf4.+make it dense first"):
            refuse(module, "fp8")
    broken = nn.Sequential(dense(), dense())
    broken[1].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        quantise(broken, "nf4")
    assert type(broken[0]) is nn.Linear


@pytest.mark.parametrize("when", ["adapters first", "stored first"])
def test_adapters_train_on_a_stored_trunk_that_stays_as_it_is(name, when):
    rack = spec(lora=LORA).build() if when == "adapters first" else spec().build()
    quantise(rack.stacks, name)
    if when == "stored first":
        for path, linear in list(rack.stacks.named_modules()):
            if isinstance(linear, nn.Linear):
                adapter = Adapter(linear.in_features, linear.out_features, rank=2, alpha=2)
                place, _, child = path.rpartition(".")
                setattr(rack.stacks.get_submodule(place), child, with_adapters(linear, {"lora": adapter}))
        for parameter_name, parameter in rack.named_parameters():
            parameter.requires_grad_(".adapters." in parameter_name)
    rack.eval()
    with torch.no_grad():
        start = rack(TOKENS)
    before = state(rack.train())
    trained = {each for each, parameter in rack.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW([rack.get_parameter(each) for each in trained], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(rack(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        optimizer.step()
    lowest = rack.stacks[0].blocks[0].mixer.query.adapters["lora"]
    assert lowest.up.grad.norm() > 0
    assert lowest.down.grad.norm() > 0
    assert trained == {each for each in before if ".adapters." in each}
    after = rack.state_dict()
    assert all(not torch.equal(after[each], before[each]) for each in trained)
    assert_same(*({each: tensors[each] for each in before.keys() - trained} for tensors in (after, before)))
    assert not torch.equal(rack(TOKENS), start)


def test_a_stored_linear_with_adapters_is_within_three_tenths_of_bfloat16():
    linear = with_adapters(quantised(dense(1024, 1024), "nf4"), {"stack": Adapter(1024, 1024, rank=8, alpha=8)})
    assert memory_bytes(linear) <= 0.3 * 2 * 1024 * 1024


@pytest.mark.parametrize("make", [None, quantised, fake_quantised])
def test_adapters_of_several_names_add_up_on_every_kind_of_linear(make):
    linear = dense(bias=True) if make is None else make(dense(bias=True), "nvfp4")
    first, second = (Adapter(48, 20, rank=3, alpha=2) for _ in range(2))
    for adapter in (first, second):
        nn.init.normal_(adapter.up)
    x = noise(4, 48)
    adapted = with_adapters(with_adapters(linear, {"stack": first}), {"progressive": second})
    assert isinstance(adapted, AdaptedLinear)
    assert isinstance(adapted, type(linear))
    assert list(adapted.adapters) == ["stack", "progressive"]
    torch.testing.assert_close(adapted(x), linear(x) + first(x) + second(x))
    if isinstance(adapted, QuantisedLinear):
        torch.testing.assert_close(dequantised(adapted)(x), adapted(x))


def test_shapes_are_known_without_memory(name):
    with torch.device("meta"):
        linear = nn.Linear(50, 21)
    stored, real = quantised(linear, name), quantised(dense(50, 21, bias=True), name)
    assert {key: (each.shape, each.dtype) for key, each in stored.state_dict().items()} == {
        key: (each.shape, each.dtype) for key, each in real.state_dict().items()
    }
    assert stored.weight.shape == (21, 50)
    assert stored(torch.empty(3, 50, device="meta")).shape == (3, 21)
    assert memory_bytes(stored) == memory_bytes(real)
    filled = stored.to_empty(device="cpu")
    filled.load_state_dict(real.state_dict())
    assert torch.equal(filled(noise(3, 50)), real(noise(3, 50)))


def test_gradients_of_single_samples(name):
    stored, x = quantised(dense(), name), noise(5, 48)

    def loss(sample):
        return stored(sample).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(x)
    expected = torch.stack([torch.func.grad(loss)(sample) for sample in x])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("d_in", "d_out"), [(1, 1), (3, 5), (17, 3), (96, 7), (64, 300), (128, 257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bitsandbytes_and_what_stands_in_for_it_are_one(d_in, d_out, dtype, monkeypatch):
    pytest.importorskip("bitsandbytes")
    linear = dense(d_in, d_out)
    linear.weight.data[0, 0] = 0.5
    foreign = quantised(linear, "nf4")
    weight = FORMATS["nf4"].unpack(*foreign.stored().values(), shape=(d_out, d_in), dtype=dtype)
    monkeypatch.setattr(nf4, "_bitsandbytes", lambda: None)
    own = quantised(linear, "nf4")
    assert_same(own.state_dict(), foreign.state_dict())
    assert torch.equal(weight, FORMATS["nf4"].unpack(*own.stored().values(), shape=(d_out, d_in), dtype=dtype))


def nearest(weight, table):
    """The nearest of a table's values, of two at the same distance the one of even place."""
    places = sorted(range(len(table)), key=lambda place: place % 2)
    values = torch.tensor([table[place] for place in places], dtype=torch.float64)
    return values[(weight.double()[..., None] - values).abs().argmin(dim=-1)]


@pytest.mark.parametrize("is_emulated", [True, False])
def test_nf4_takes_the_nearest_value(is_emulated, monkeypatch):
    if is_emulated:
        monkeypatch.setattr(nf4, "_bitsandbytes", lambda: None)
    linear = dense(64, 40)
    packed, *_ = quantised(linear, "nf4").stored().values()
    codes = torch.stack((packed // 16, packed % 16), dim=1).view(40, 64).long()
    peaks = linear.weight.abs().amax(dim=1, keepdim=True)
    expected = nearest((linear.weight / peaks).detach(), nf4.VALUES)
    assert torch.equal(torch.tensor(nf4.VALUES, dtype=torch.float64)[codes], expected)


def test_nvfp4_takes_the_nearest_value_and_of_two_the_even_one():
    halfway = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    weight = torch.cat((halfway, -halfway))[None]  # largest 6 and so scales of 448 and 1 / 448: exact
    expected = torch.tensor([0.0, 1, 1, 2, 2, 4, 4, 6])
    linear = dense(16, 1)
    linear.weight.data.copy_(weight)
    assert torch.equal(quantised(linear, "nvfp4").weight, torch.cat((expected, -expected))[None])
    linear = dense(40, 30)
    stored = quantised(linear, "nvfp4")
    _, scales, scale = stored.stored().values()
    total = (scales.view(torch.float8_e4m3fn).double() * scale.double()).repeat_interleave(16, dim=1)[:, :40]
    signed = nearest(linear.weight.detach().abs().double() / total, nvfp4.MAGNITUDES) * linear.weight.detach().sign() * total
    torch.testing.assert_close(stored.weight.double(), signed, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_nvfp4_is_what_torchao_makes_of_it(std):
    formats = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    linear = dense(512, 256, std=std)
    scale = formats.per_tensor_amax_to_scale(linear.weight.detach().abs().max())
    foreign = formats.NVFP4Tensor.to_nvfp4(linear.weight.detach(), per_tensor_scale=scale)
    assert torch.equal(quantised(linear, "nvfp4").weight, foreign.dequantize(torch.float32))


@pytest.mark.parametrize(("d_in", "d_out"), [(1, 1), (15, 3), (17, 2), (33, 5), (64, 3), (128, 2)])
def test_odd_sizes_and_zeros(name, d_in, d_out):
    linear, x = dense(d_in, d_out), noise(2, d_in)
    assert quantised(linear, name).weight.shape == (d_out, d_in)
    assert torch.equal(quantised(linear, name)(x), x @ quantised(linear, name).weight.mT)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in quantised(linear, name).buffers())
    linear.weight.data[-1] = 0
    assert not quantised(linear, name).weight[-1].any()
    linear.weight.data.zero_()
    assert not quantised(linear, name).weight.any()


def test_large_and_small_rows_stay_apart(name):
    linear = dense(64, 2)
    linear.weight.data[0] *= 1000
    errors = [relative_error(*rows) for rows in zip(quantised(linear, name).weight, linear.weight, strict=True)]
    assert max(errors) < 0.13


@pytest.mark.parametrize("adapted", [False, True])
def test_training_as_stored_is_the_stored_linear_with_the_gradient_of_a_dense_one(name, adapted):
    module = nn.Sequential(dense(bias=True))
    if adapted:
        module[0] = with_adapters(module[0], {"stack": Adapter(48, 20, rank=2, alpha=2)})
    reference, x = copy.deepcopy(module), noise(5, 48)
    parameters = dict(module.named_parameters())
    assert fake_quantise(module, name).linears == ("0",)
    assert fake_quantise(module, name).linears == ()
    assert {each: id(parameter) for each, parameter in module.named_parameters()} == {
        each: id(parameter) for each, parameter in parameters.items()
    }
    packed = copy.deepcopy(module)
    quantise(packed, name)
    torch.testing.assert_close(module(x), packed(x), rtol=1e-6, atol=1e-6)
    assert not torch.equal(module(x), reference(x))
    for each in (module, reference):
        each(x).sum().backward()
    assert torch.equal(module[0].weight.grad, reference[0].weight.grad)


def test_training_as_stored_lowers_the_loss():
    rack = spec().build()
    fake_quantise(rack, "nvfp4")
    assert sum(isinstance(part, FakeQuantisedLinear) for part in rack.modules()) > 10
    optimizer, losses = torch.optim.AdamW(rack.parameters(), lr=0.01), []
    for _ in range(20):
        loss = F.cross_entropy(rack(TOKENS).flatten(0, 1), TOKENS.flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    trained = rack.eval()(TOKENS)
    quantise(rack, "nvfp4")
    torch.testing.assert_close(rack(TOKENS), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_holds_and_computes_the_same(name):
    linear, x = dense(bias=True), noise(5, 48)
    here = quantised(linear, name)
    there = copy.deepcopy(here).cuda()
    assert_same(copy.deepcopy(there).cpu().state_dict(), here.state_dict())
    assert torch.equal(there.weight.cpu(), here.weight)
    assert relative_error(quantised(copy.deepcopy(linear).cuda(), name).weight.cpu(), here.weight) < 0.01
    gradients = []
    for stored in (here, there):
        moved = x.to(stored.bias.device).requires_grad_()
        with torch.no_grad():
            stored.eval()(moved)
        gradients += torch.autograd.grad(stored.train()(moved).square().sum(), moved)
    torch.testing.assert_close(gradients[1].cpu(), gradients[0], rtol=1e-2, atol=1e-3)
