"""Kernels by name: how arguments are turned into a package's, with dumb stand-ins, and which kernel is taken, and why not."""

import inspect
import re
import sys
import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from models import MIXERS, RackSpec
from models.mixers.gated_delta_net import GatedDeltaNet
from models.ops.convolutions.short_convolution import ShortConvolution
from models.ops.kernels import attention, check_kernel, dispatch, run_kernel
from models.ops.kernels.kernel import FLOATS, HALVES, wrong_dtype
from models.ops.kernels.package import CAUSAL_CONV1D, FLA, FLASH_ATTENTION, load_package
from models.ops.kernels.table import OPS
from models.rack.modules import Block
from tests.models.cases import D_MODEL, build, noise
from tests.models.kernel_cases import CASES, KERNELS, ONLY_HALVES, arguments, assert_parity, result

# Triton is torch's own, and no stand-in of it would do.
FOREIGN = [(op, name) for op, name in KERNELS if name != "flex"]
ROOTS = {"flash_attn", "mamba_ssm", "causal_conv1d", "fla"}


@pytest.fixture(autouse=True)
def forgotten():
    """What was tried to import is tried anew, before and after; real packages come back, stand-ins do not stay."""

    def forget():
        load_package.cache_clear()
        names = [name for name in sys.modules if name.partition(".")[0] in ROOTS]
        return {name: sys.modules.pop(name) for name in names}

    real = forget()
    yield
    forget()
    sys.modules.update(real)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a function importable as `module:name` of a distribution, by the text of its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def installed(distribution, function, text=None):
        module, _, name = function.partition(":")
        folder = tmp_path
        for part in module.split("."):
            folder /= part
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / "__init__.py").write_text(text or f"from tests.models.foreign import {name}\n")
        metadata = tmp_path / f"{distribution.replace('-', '_')}-9.9.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9\n")

    return installed


@pytest.fixture
def stand_ins(install, monkeypatch):
    """Every package is installed, and what lies on the CPU counts as on CUDA."""
    for op in OPS.values():
        for kernel in op.kernels:
            if kernel.name != "flex":
                install(kernel.package.distributions[0], kernel.function)
    monkeypatch.setattr(dispatch, "is_on_cuda", lambda tensor: tensor.device.type == "cpu")


def kernel_of(op, name):
    return next(kernel for kernel in OPS[op].kernels if kernel.name == name)


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
        if dispatch.obstacle(kernel_of(op, name), tuple(tensors), options):
            assert (op in ONLY_HALVES, dtype) == (True, torch.float32)
            continue
        assert_parity(op, name, tensors, options, tolerance=1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if getattr(MIXERS[kind], "kernel_op", None)])
@pytest.mark.usefixtures("stand_ins")
def test_mixers_run_their_kernel_and_give_the_same(kind, monkeypatch):
    kernel, called = OPS[MIXERS[kind].kernel_op].kernels[0], []
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
    name = OPS[MIXERS[kind].kernel_op].kernels[0].name
    block, x = Block(build(MIXERS, {"kind": kind, "kernel": name})), noise(3, 33, D_MODEL)
    places = torch.arange(33)
    attention_mask = torch.stack([places >= 7, places < 20, (places < 4) | (places > 11)])
    with torch.autocast("cpu", torch.bfloat16):
        together, again = (block(each, attention_mask) for each in (x, torch.where(attention_mask[..., None], x, 9.0)))
        for row, own in enumerate(attention_mask):
            alone = block(x[row : row + 1, own])[0]
            torch.testing.assert_close(together[row, own], alone, rtol=0.02, atol=0.02)
    assert torch.equal(together[attention_mask], again[attention_mask])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", [2, 3])
def test_windows_of_flex_attention(monkeypatch, case):
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    kernel = kernel_of("attend", "flex")
    (query, key, value), options = arguments("attend", case, 65)
    assert kernel.misfit(query, key, value, **options) is None
    mixed = kernel.call(flex_attention, query, key, value, **options)
    torch.testing.assert_close(mixed, run_kernel("attend", "reference", query, key, value, **options))


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


def taken(monkeypatch, op, tensors, options, name="auto"):
    """The name of the kernel that runs, without running it."""
    for kernel in OPS[op].kernels:
        monkeypatch.setitem(vars(kernel), "call", lambda *_, _name=kernel.name, **__: _name)
    found = run_kernel(op, name, *tensors, **options)
    return found if isinstance(found, str) else "reference"


@pytest.mark.parametrize("op", CASES)
def test_auto_on_the_cpu_is_the_reference_and_imports_nothing(op, install, monkeypatch):
    for kernel in OPS[op].kernels:
        install(kernel.package.distributions[0], kernel.function.replace("torch.nn", "fla"), "raise AssertionError")
    tensors, options = arguments(op, 0, 17)
    assert taken(monkeypatch, op, tensors, options) == "reference"


@pytest.mark.parametrize(("op", "name"), FOREIGN)
@pytest.mark.usefixtures("stand_ins")
def test_auto_takes_what_is_installed(op, name, monkeypatch):
    assert taken(monkeypatch, op, *arguments(op, 0, 17, dtype=torch.bfloat16)) == name


@pytest.mark.parametrize(("op", "name"), FOREIGN)
@pytest.mark.usefixtures("stand_ins")
def test_auto_is_as_exact_as_torch_would_be(op, name, monkeypatch):
    tensors, options = arguments(op, 0, 17)
    is_exact = op in {"causal_convolution", "selective_scan"}
    is_refused = op in ONLY_HALVES
    assert torch.get_float32_matmul_precision() == "highest"
    assert taken(monkeypatch, op, tensors, options) == (name if is_exact else "reference")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert taken(monkeypatch, op, tensors, options) == ("reference" if is_refused else name)


def test_auto_without_any_package_is_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, "is_on_cuda", lambda _: True)
    for op in OPS:
        assert taken(monkeypatch, op, *arguments(op, 0, 17, dtype=torch.bfloat16)) == "reference"


@pytest.mark.usefixtures("stand_ins")
def test_packed_models_run_the_reference():
    tensors, _ = arguments("gated_linear_attention", 0, 17)
    stacked = [torch.stack((value, value / 2)).bfloat16() for value in tensors]

    def packed(name):
        return torch.vmap(lambda *parts: run_kernel("gated_linear_attention", name, *parts))(*stacked)

    assert torch.equal(packed("auto"), packed("reference"))
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


@pytest.mark.parametrize("case", MISFITS.values(), ids=MISFITS)
@pytest.mark.usefixtures("stand_ins")
def test_what_does_not_fit_is_said_or_left_to_the_reference(case, monkeypatch):
    op, name, tensors, options, reason = case
    with pytest.raises(ValueError, match=f"kernel = {name} cannot run {op}: .*{reason}"):
        run_kernel(op, name, *tensors, **options)
    assert taken(monkeypatch, op, tensors, options) == "reference"


def test_flex_attention_is_for_windows():
    misfit, query = kernel_of("attend", "flex").misfit, noise(1, 1, 20, 16)
    assert misfit(query, query, query, causal=True, window=5) is None
    for window in (None, 20):
        assert "windows shorter" in misfit(query, query, query, causal=True, window=window)
    assert "power of two" in misfit(*[noise(1, 1, 20, 24)] * 3, causal=True, window=5)


def test_on_the_cpu_a_kernel_by_name_is_refused(install):
    install("flash-linear-attention", "fla.ops.linear_attn:chunk_linear_attn")
    with pytest.raises(ValueError, match="needs a CUDA device, and these are on cpu"):
        run_kernel("linear_attention", "fla", *arguments("linear_attention", 0, 4)[0])


def test_a_missing_kernel_is_told_how_to_install():
    message = r"kernel = fla: flash-linear-attention is not installed; .*pip install \"flash-linear-attention>=0.3\""
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
    message = "kernel = 'flash_attn' is none of attend: did you mean 'flash-attn'? Known: auto, reference, flash-attn, flex"
    with torch.device(where), pytest.raises(ValueError, match=re.escape(message)):
        check_kernel("attend", "flash_attn")


def test_a_kernel_that_cannot_be_imported_says_why(install, monkeypatch):
    install("flash-attn", "flash_attn:flash_attn_func", "raise ImportError('libcudart.so.13: no such file\\nmore')")
    monkeypatch.setattr(dispatch, "is_on_cuda", lambda _: True)
    reason = "flash-attn 9.9 cannot be imported: ImportError: libcudart.so.13: no such file"
    tensors, options = arguments("attend", 0, 4, dtype=torch.bfloat16)
    assert load_package(FLASH_ATTENTION, "flash_attn:flash_attn_func") == reason
    with pytest.raises(ValueError, match=f"{re.escape(reason)} \\(auto"):
        run_kernel("attend", "flash-attn", *tensors, **options)
    assert taken(monkeypatch, "attend", tensors, options) == "reference"


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


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_install_lines_are_for_this_torch(cuda, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu" if cuda is None else "2.13.0")
    first = ["pip install --force-reinstall --index-url https://pypi.org/simple torch==2.13.0"] if cuda is None else []
    home = "" if cuda is None else "CUDA_HOME=/usr/local/cuda-13.0 "
    assert list(FLA.install()) == [*first, 'pip install "flash-linear-attention>=0.3"']
    assert list(FLASH_ATTENTION.install()) == [
        *first,
        "pip install ninja packaging setuptools wheel",
        f'{home}pip install --no-build-isolation "flash-attn>=2.7"',
    ]


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
