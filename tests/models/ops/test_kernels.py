"""Kernels by name: how arguments are turned into a package's, with dumb stand-ins, and which kernel is taken, and why not."""

import inspect
import re
import sys
import warnings

import pytest
import torch

from models import MIXERS, RackSpec
from models.mixers.gated_delta_net import GatedDeltaNet
from models.ops.convolutions.short_convolution import ShortConvolution
from models.ops.kernels import check_kernel, dispatch, run_kernel
from models.ops.kernels.kernel import FLOATS, HALVES, OTHER_CASES, wrong_dtype
from models.ops.kernels.package import CAUSAL_CONV1D, FLA, load_package
from models.ops.kernels.table import OPS
from models.rack.modules import Block
from tests.models.cases import D_MODEL, build, noise
from tests.models.kernel_cases import CASES, KERNELS, LARGE, LONG, ONLY_HALVES, arguments, assert_parity, kernel_of, result, taken

pytestmark = pytest.mark.usefixtures("only_stand_ins")

# Triton is torch's own, and no stand-in of it would do.
FOREIGN = [(op, name) for op, name in KERNELS if name != "flex"]
BY_TORCH = {"flash-attn-4", "flash-attn-3"}
"""What torch's own attention runs: with stand-ins, torch's own on the CPU."""


def foreign_kernel(kind):
    """The first kernel of a mixer whose stand-in computes in its own way."""
    return next(kernel for kernel in OPS[MIXERS[kind].kernel_op].kernels if kernel.name not in BY_TORCH)


def test_ops_go_by_the_names_of_their_references():
    assert {name: op.reference.__name__ for name, op in OPS.items()} == {name: name for name in OPS}
    assert set(CASES) == set(OPS)


@pytest.mark.parametrize(("op", "name"), FOREIGN)
@pytest.mark.parametrize("time", [1, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("stand_ins")
def test_adapters_give_what_the_reference_gives(op, name, time, dtype):
    for case in range(len(CASES[op])):
        tensors, options = arguments(op, case, time, dtype=dtype)
        if problem := dispatch.obstacle(kernel_of(op, name), tuple(tensors), options):
            assert problem in OTHER_CASES or (op in ONLY_HALVES and dtype == torch.float32)
            continue
        assert_parity(op, name, tensors, options, tolerance=1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("op", CASES)
@pytest.mark.parametrize("sizes", LARGE, ids=lambda sizes: str(sizes.d_key))
@pytest.mark.parametrize("time", LONG)
def test_the_reference_runs_at_the_sizes_that_kernels_are_compared_at(op, sizes, time):
    for case in range(len(CASES[op])):
        found = result(op, "reference", *arguments(op, case, time, sizes=sizes))
        assert all(value.isfinite().all() and value.any() for value in found)


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if getattr(MIXERS[kind], "kernel_op", None)])
@pytest.mark.usefixtures("stand_ins")
def test_mixers_run_their_kernel_and_give_the_same(kind, monkeypatch):
    kernel, called = foreign_kernel(kind), []
    original = kernel.call

    def counting(*arguments, **options):
        called.append(kernel.name)
        return original(*arguments, **options)

    monkeypatch.setitem(vars(kernel), "call", counting)
    found = []
    for name in (kernel.name, "reference"):
        mixer, x = build(MIXERS, {"kind": kind, "kernel": name}), noise(2, 33, D_MODEL)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(mixer(x).float())
    assert called == [kernel.name]
    assert 0 < (found[0] - found[1]).norm() < 0.05 * found[1].norm()


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if getattr(MIXERS[kind], "kernel_op", None)])
@pytest.mark.usefixtures("stand_ins")
@torch.no_grad()
def test_pads_have_no_effect_where_kernels_run(kind):
    """Also in kernels that know no mask: what is behind the tokens is not seen, and before them there is nothing."""
    name = foreign_kernel(kind).name
    block, x = Block(build(MIXERS, {"kind": kind, "kernel": name})), noise(3, 33, D_MODEL)
    places = torch.arange(33)
    attention_mask = torch.stack([places >= 7, places < 20, (places < 4) | (places > 11)])
    with torch.autocast("cpu", torch.bfloat16):
        together, again = (block(each, attention_mask) for each in (x, torch.where(attention_mask[..., None], x, 9.0)))
        for row, own in enumerate(attention_mask):
            alone = block(x[row : row + 1, own])[0]
            torch.testing.assert_close(together[row, own], alone, rtol=0.02, atol=0.02)
    assert torch.equal(together[attention_mask], again[attention_mask])


@pytest.mark.usefixtures("stand_ins")
def test_under_autocast_activations_are_half_and_decays_are_not(monkeypatch):
    seen = {}

    def spy(function, *tensors):
        def recorded(**given):
            seen.update({name: value.dtype for name, value in given.items() if isinstance(value, torch.Tensor)})
            return function(**given)

        return original(recorded, *tensors)

    kernel = OPS["gated_delta_rule"].kernels[0]
    original = kernel.call
    monkeypatch.setitem(vars(kernel), "call", spy)
    tensors, _ = arguments("gated_delta_rule", 0, 17)
    with torch.autocast("cpu", torch.bfloat16):
        output = run_kernel("gated_delta_rule", "auto", *tensors)
    assert output.dtype == torch.float32
    assert seen == {"q": torch.bfloat16, "k": torch.bfloat16, "v": torch.bfloat16, "beta": torch.float32, "g": torch.float32}


@pytest.mark.parametrize("op", CASES)
def test_auto_on_the_cpu_is_the_reference_and_imports_nothing(op, install, monkeypatch):
    for kernel in OPS[op].kernels:
        install(kernel.package.distributions[0], kernel.function.replace("torch.nn", "fla"), "raise AssertionError")
    tensors, options = arguments(op, 0, 17)
    assert taken(monkeypatch, op, tensors, options) == "reference"


@pytest.mark.parametrize(("op", "name"), FOREIGN)
@pytest.mark.usefixtures("as_on_cuda")
def test_auto_takes_what_is_installed(op, name, install, monkeypatch):
    kernel = kernel_of(op, name)
    install(kernel.package.distributions[0], kernel.function, version=kernel.package.floor)
    assert taken(monkeypatch, op, *arguments(op, 0, 17, dtype=torch.bfloat16)) == name


@pytest.mark.filterwarnings("ignore:kernel = auto runs")
@pytest.mark.parametrize(("op", "name"), FOREIGN)
@pytest.mark.usefixtures("as_on_cuda")
def test_auto_is_as_exact_as_torch_would_be(op, name, install, monkeypatch):
    kernel = kernel_of(op, name)
    install(kernel.package.distributions[0], kernel.function, version=kernel.package.floor)
    tensors, options = arguments(op, 0, 17)
    is_exact = op in {"causal_convolution", "selective_scan"}
    is_refused = op in ONLY_HALVES
    assert taken(monkeypatch, op, tensors, options) == (name if is_exact else "reference")
    switches = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [switch.fp32_precision for switch in switches]
    for switch, told in zip(switches, ("tf32", "bf16"), strict=True):  # of the two together torch's older getter raises
        switch.fp32_precision = told
    try:
        assert taken(monkeypatch, op, tensors, options) == ("reference" if is_refused else name)
    finally:
        for switch, told in zip(switches, before, strict=True):
            switch.fp32_precision = told


@pytest.mark.usefixtures("as_on_cuda")
def test_auto_without_any_package_is_the_reference(monkeypatch):
    for op in OPS:
        assert taken(monkeypatch, op, *arguments(op, 0, 17, dtype=torch.bfloat16)) == "reference"


@pytest.mark.usefixtures("stand_ins")
def test_packed_models_run_the_reference():
    tensors, _ = arguments("gated_linear_attention", 0, 17)
    stacked = [torch.stack((value, value / 2)).bfloat16() for value in tensors]

    def packed(name):
        return torch.vmap(lambda *parts: run_kernel("gated_linear_attention", name, *parts))(*stacked)

    with pytest.warns(UserWarning, match=r"by the reference, not fla: it does not run under torch.func"):
        found = packed("auto")
    assert torch.equal(found, packed("reference"))
    with pytest.raises(ValueError, match=r"kernel = fla cannot run gated_linear_attention: it does not run under torch.func"):
        packed("fla")


@pytest.mark.usefixtures("stand_ins")
def test_without_memory_every_kernel_is_the_reference():
    tensors, options = arguments("gated_delta_rule", 0, 17, device="meta")
    assert run_kernel("gated_delta_rule", "fla", *tensors, **options).shape == (2, 4, 17, 32)


MISFITS = {
    "head size": ("attend", "flash-attn", [noise(1, 1, 4, 12).bfloat16()] * 3, {"causal": True, "window": None}, "multiple of 8"),
    "float32": ("attend", "flash-attn", [noise(1, 1, 4, 16)] * 3, {"causal": True, "window": None}, "not float32"),
    "sinks": (
        "attend",
        "flash-attn",
        [noise(1, 1, 4, 16).bfloat16()] * 3,
        {"causal": True, "window": None, "sinks": noise(1)},
        "knows no sinks",
    ),
    "fewer queries": (
        "attend",
        "flash-attn",
        [noise(1, 1, time, 16).bfloat16() for time in (3, 4, 4)],
        {"causal": True, "window": None},
        "as many queries as keys",
    ),
    "width": ("causal_convolution", "causal-conv1d", [noise(1, 4, 8), noise(8, 5), None], {"silu": True}, "not 5 and 8"),
    "channels": ("causal_convolution", "causal-conv1d", [noise(1, 4, 6), noise(6, 4), None], {"silu": True}, "not 4 and 6"),
    "float64": ("selective_scan", "mamba-ssm", [value.double() for value in arguments("selective_scan", 0, 4)[0]], {}, "float64"),
    "small heads": ("linear_attention", "fla", [noise(1, 1, 4, 8)] * 3, {}, "at least 16, not 8 and 8"),
    "large heads": ("gated_delta_rule", "fla", [noise(1, 1, 4, 512)] * 3 + [noise(1, 1, 4)] * 2, {}, "at most 256, not 512"),
}


@pytest.mark.filterwarnings("ignore:kernel = auto runs")
@pytest.mark.parametrize("case", MISFITS.values(), ids=MISFITS)
@pytest.mark.usefixtures("stand_ins")
def test_what_does_not_fit_is_said_or_left_to_the_reference(case, monkeypatch):
    op, name, tensors, options, reason = case
    with pytest.raises(ValueError, match=f"kernel = {name} cannot run {op}: .*{reason}"):
        run_kernel(op, name, *tensors, **options)
    assert taken(monkeypatch, op, tensors, options) == "reference"


def test_on_the_cpu_a_kernel_by_name_is_refused(install):
    install("flash-linear-attention", "fla.ops.linear_attn:chunk_linear_attn")
    with pytest.raises(ValueError, match="needs a CUDA device, and these are on cpu"):
        run_kernel("linear_attention", "fla", *arguments("linear_attention", 0, 4)[0])


def test_a_missing_kernel_is_told_how_to_install():
    message = r"kernel = fla: flash-linear-attention is not installed; .*pip install \"flash-linear-attention>=0.6\""
    with pytest.raises(ValueError, match=message):
        GatedDeltaNet(32, kernel="fla")
    with pytest.raises(
        ValueError, match=r"fla cannot run linear_attention: flash-linear-attention is not installed; .*pip install"
    ):
        run_kernel("linear_attention", "fla", *arguments("linear_attention", 0, 4)[0])
    with torch.device("meta"):
        GatedDeltaNet(32, kernel="fla")  # it may be meant for another machine


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_an_unknown_kernel_is_told_which_there_are(where):
    known = "auto, reference, flash-attn-4, flash-attn-3, flash-attn, flex"
    message = f"kernel = 'flash_attn' is none of attend: did you mean 'flash-attn'? Known: {known}"
    with torch.device(where), pytest.raises(ValueError, match=re.escape(message)):
        check_kernel("attend", "flash_attn")


def test_an_older_package_without_the_function_says_so(install):
    install("flash-linear-attention", "fla.ops.kda:chunk_kda", "chunk = 1")
    assert "AttributeError: module 'fla.ops.kda' has no attribute 'chunk_kda'" in load_package(FLA, "fla.ops.kda:chunk_kda")


def test_what_a_package_warns_of_is_no_failure(install, recwarn):
    warnings.simplefilter("error")
    install("causal-conv1d", "causal_conv1d:causal_conv1d_fn", "import warnings\nwarnings.warn('old')\ncausal_conv1d_fn = len")
    assert load_package(CAUSAL_CONV1D, "causal_conv1d:causal_conv1d_fn") is len
    assert [str(warning.message) for warning in recwarn] == ["old"]


def test_finding_a_version_imports_nothing(install):
    assert FLA.version() is None
    install("flash-linear-attention", "fla.ops.gla:chunk_gla", "raise AssertionError")
    assert FLA.version() == "9.9"
    assert "fla" not in sys.modules


def test_every_mixer_with_kernels_names_its_op():
    for kind in MIXERS:
        parameters = list(inspect.signature(MIXERS[kind]).parameters.values())
        has_op = getattr(MIXERS[kind], "kernel_op", None) in OPS
        assert has_op == any(parameter.name == "kernel" for parameter in parameters), kind
        if has_op:
            assert (parameters[-1].name, parameters[-1].default) == ("kernel", "auto"), kind
            with pytest.raises(ValueError, match="did you mean 'reference'"):
                MIXERS[kind](32, kernel="referense")


def test_the_reference_of_a_mixer_is_the_reference_throughout():
    for kernel, expected in (("reference", "reference"), ("auto", "auto")):
        mixer = GatedDeltaNet(32, kernel=kernel)
        found = {module.kernel for module in mixer.modules() if isinstance(module, ShortConvolution)}
        assert (mixer.kernel, found) == (kernel, {expected})


def test_a_kernel_is_no_part_of_what_a_model_is():
    def spec(**options):
        return RackSpec(d_model=32, vocab_size=8, layers=[{"kind": "gated_delta_net", **options}])

    assert spec(kernel="reference").fingerprint() == spec().fingerprint()
    assert spec(kernel="fla").fingerprint() == spec().fingerprint()
    assert spec(n_heads=2).fingerprint() != spec().fingerprint()
    with pytest.raises(ValueError, match="kernel = 'flaa' is none of gated_delta_rule: did you mean 'fla'"):
        spec(kernel="flaa")


def test_the_comparison_can_fail():
    tensors, options = arguments("linear_attention", 0, 17)
    assert_parity("linear_attention", "reference", tensors, options, tolerance=1e-6)
    changed = [tensors[0] * 1.01, *tensors[1:]]
    found, expected = (result("linear_attention", "reference", given, options)[0] for given in (changed, tensors))
    assert (found - expected).norm() / expected.norm() > 5e-3


def test_known_precisions_are_named():
    assert wrong_dtype(torch.float32, FLOATS) is None
    assert wrong_dtype(torch.float32, HALVES) == "it computes in bfloat16 or float16, not float32"
    assert wrong_dtype(torch.float64, FLOATS) == "it computes in bfloat16, float16 or float32, not float64"
