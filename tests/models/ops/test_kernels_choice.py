"""Which kernel `auto` takes, of which versions, on which GPU, and what it says of those that it does not take."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

from models.ops.kernels import check_kernel, dispatch, kernel, run_kernel
from models.ops.kernels.package import (
    BUILD_NEEDS,
    CAUSAL_CONV1D,
    FLA,
    FLASH_ATTENTION,
    FLASH_ATTENTION_3,
    FLASH_ATTENTION_4,
    FLEX,
    MAMBA_SSM,
    is_within,
    load_package,
)
from models.ops.kernels.table import OPS
from tests.models.cases import noise
from tests.models.kernel_cases import arguments, kernel_of, taken

pytestmark = pytest.mark.usefixtures("only_stand_ins")

ROOT = Path(__file__).parents[3]
PACKAGES = {each.package for op in OPS.values() for each in op.kernels}
OF_NO_EXTRA = {FLEX, FLASH_ATTENTION_3, FLASH_ATTENTION_4}
"""Torch brings Triton along; of FlashAttention 3 and 4 there are no releases on PyPI but betas of 4."""


def halves(op):
    return arguments(op, 0, 17, dtype=torch.bfloat16)


def chosen(monkeypatch, op, **changed):
    """What auto takes without saying a word."""
    tensors, options = halves(op)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return taken(monkeypatch, op, tensors, options | changed)


def test_the_extra_asks_for_the_versions_that_are_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = set(project["project"]["optional-dependencies"]["kernels"])
    assert asked == {package.requirement for package in PACKAGES - OF_NO_EXTRA}
    assert project["build-system"]["requires"] == [need for need in BUILD_NEEDS if need.startswith("setuptools")]


def test_the_readme_builds_with_what_building_needs(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line, home = FLASH_ATTENTION.install()[-2:]
    assert f"\n{line}\n" in readme
    assert home.replace(f'"{FLASH_ATTENTION.requirement}"', '".[kernels]"') in readme


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_install_lines_are_for_this_torch(cuda, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu" if cuda is None else "2.13.0")
    first = ["pip install --force-reinstall --index-url https://pypi.org/simple torch==2.13.0"] if cuda is None else []
    version = '$(python -c "import torch; print(torch.version.cuda)")' if cuda is None else "13.0"
    build = f"CUDA_HOME=/usr/local/cuda-{version} pip install --no-build-isolation"
    needs = "pip install ninja packaging psutil 'setuptools>=77' wheel"
    assert list(FLA.install()) == [*first, 'pip install "flash-linear-attention>=0.6"']
    assert list(FLASH_ATTENTION.install()) == [*first, needs, f'{build} "flash-attn>=2.8.3"']
    assert list(MAMBA_SSM.install()) == [*first, needs, f'{build} "mamba-ssm>=2.3,<2.3.2"']
    source = "git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper"
    assert list(FLASH_ATTENTION_3.install()) == [*first, needs, f'{build} "{source}"']


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.2.6.post3", False), ("2.3.0rc1", False), ("2.3", True), ("2.3.1+cu130", True), ("2.3.2", False), ("2.10", False)],
)
def test_versions_are_ordered_as_pip_orders_them(version, expected):
    assert is_within(version, "2.3", "2.3.2") == expected


WRONG_VERSIONS = [
    ("gated_delta_rule", FLA, "0.5.1", "flash-linear-attention>=0.6"),
    ("selective_scan", MAMBA_SSM, "2.2.6.post3", "mamba-ssm>=2.3,<2.3.2"),
    ("state_space_duality", MAMBA_SSM, "2.3.2.post1", "mamba-ssm>=2.3,<2.3.2"),
    ("causal_convolution", CAUSAL_CONV1D, "1.5.3.post1", "causal-conv1d>=1.6"),
    ("attend", FLASH_ATTENTION, "2.8.2", "flash-attn>=2.8.3"),
    ("attend", FLASH_ATTENTION_4, "4.0.0b11", "flash-attn-4>=4.0.0b36"),
]


@pytest.mark.parametrize("case", WRONG_VERSIONS, ids=lambda case: f"{case[0]}-{case[2]}")
@pytest.mark.usefixtures("as_on_cuda")
def test_other_versions_are_not_used_and_said_once(case, install, monkeypatch):
    op, package, version, needed = case
    install(package.distributions[0], kernel_of(op, package.name).function, "raise AssertionError", version=version)
    reason = f"{package.distributions[0]} {version} is installed, {needed} is needed"
    with pytest.warns(UserWarning, match=re.escape(f"auto runs {op} by the reference, not {package.name}: {reason}")):
        assert taken(monkeypatch, op, *halves(op)) == "reference"
    assert chosen(monkeypatch, op) == "reference"
    with pytest.raises(ValueError, match=re.escape(f"kernel = {package.name} cannot run {op}: {reason}; to install it: ")):
        run_kernel(op, package.name, *halves(op)[0], **halves(op)[1])
    with pytest.raises(ValueError, match=re.escape(f"kernel = {package.name}: {reason}; to install it: ")):
        check_kernel(op, package.name)
    install(package.distributions[0], kernel_of(op, package.name).function, version=package.floor)
    load_package.cache_clear()
    assert chosen(monkeypatch, op) == package.name


@pytest.mark.parametrize(
    "error", ["ImportError('libcudart.so.13: no such file\\nmore')", "OSError('libcudart.so.13: no such file')"]
)
@pytest.mark.usefixtures("as_on_cuda")
def test_a_kernel_that_cannot_be_imported_says_why(error, install, monkeypatch):
    """Also where something that it imports fails with an error of its own."""
    install("flash-attn", "flash_attn:flash_attn_func", f"raise {error}")
    reason = f"flash-attn 9.9 cannot be imported: {error.partition('(')[0]}: libcudart.so.13: no such file"
    tensors, options = halves("attend")
    assert load_package(FLASH_ATTENTION, "flash_attn:flash_attn_func") == reason
    with pytest.raises(ValueError, match=f"{re.escape(reason)} \\(auto"):
        run_kernel("attend", "flash-attn", *tensors, **options)
    with pytest.warns(UserWarning, match=re.escape(f"auto runs attend by the reference, not flash-attn: {reason} (")):
        assert taken(monkeypatch, "attend", tensors, options) == "reference"
    assert chosen(monkeypatch, "attend") == "reference"


@pytest.mark.usefixtures("as_on_cuda")
def test_each_reason_is_said(install, monkeypatch):
    install("flash-linear-attention", "fla.ops.linear_attn:chunk_linear_attn")
    for dtype, size, reason in (
        (torch.float32, 16, "it rounds float32 to TF32"),
        (torch.bfloat16, 8, "must be at least 16, not 8 and 8"),
    ):
        tensors = [noise(1, 1, 4, size).to(dtype)] * 3
        with pytest.warns(UserWarning, match=f"auto runs linear_attention by the reference, not fla: .*{reason}"):
            assert taken(monkeypatch, "linear_attention", tensors, {}) == "reference"


@pytest.mark.parametrize(
    ("triton", "capability", "is_taken"),
    [("3.3.1", 9, True), ("3.4.0", 9, False), ("3.7.0", 9, False), ("3.7.1", 9, True), ("3.7.0", 10, True), (None, 9, True)],
)
@pytest.mark.usefixtures("stand_ins")
def test_a_triton_that_compiles_wrong_gradients_is_not_used(triton, capability, is_taken, monkeypatch):
    monkeypatch.setattr(dispatch, "compute_capability", lambda _: capability)
    monkeypatch.setattr(type(FLEX), "version", lambda package: triton if package is kernel.FLEX else package.floor)
    assert chosen(monkeypatch, "delta_rule") == "fla"
    if is_taken:
        assert chosen(monkeypatch, "gated_delta_rule") == "fla"
        return
    tensors, options = halves("gated_delta_rule")
    reason = re.escape(f"Triton {triton} compiles it to wrong gradients on this GPU, as all do from 3.4 to before 3.7.1")
    with pytest.warns(UserWarning, match=f"by the reference, not fla: {reason}"):
        assert taken(monkeypatch, "gated_delta_rule", tensors, options) == "reference"
    with pytest.raises(ValueError, match=f"kernel = fla cannot run gated_delta_rule: {reason}"):
        run_kernel("gated_delta_rule", "fla", *tensors, **options)


@pytest.mark.parametrize(("capability", "expected"), [(8, "flash-attn"), (9, "flash-attn-4"), (10, "flash-attn-4")])
@pytest.mark.filterwarnings("ignore:kernel = auto runs attend by flash-attn, not flash-attn-4")
@pytest.mark.usefixtures("stand_ins")
def test_the_newest_flash_attention_that_the_gpu_has_comes_first(capability, expected, monkeypatch):
    monkeypatch.setattr(dispatch, "compute_capability", lambda _: capability)
    assert taken(monkeypatch, "attend", *halves("attend")) == expected


@pytest.mark.usefixtures("stand_ins")
def test_windows_are_for_the_first_that_knows_them(monkeypatch):
    """And nothing is said of the others: they are not meant for them."""
    assert chosen(monkeypatch, "attend", window=5) == "flash-attn"


@pytest.mark.parametrize(("name", "implementation"), [("flash-attn-4", "FA4"), ("flash-attn-3", "FA3")])
@pytest.mark.usefixtures("stand_ins")
def test_torch_is_switched_over_and_stays_so(name, implementation):
    tensors, options = halves("attend")
    assert current_flash_attention_impl() is None
    mixed = run_kernel("attend", name, *tensors, **options)
    assert current_flash_attention_impl() == implementation
    assert torch.equal(mixed, run_kernel("attend", name, *tensors, **options))
    assert current_flash_attention_impl() == implementation


@pytest.mark.usefixtures("stand_ins")
def test_a_switch_that_was_made_before_is_kept():
    activate_flash_attention_impl("FA3")
    tensors, options = halves("attend")
    reason = r"torch has been switched to FA3 \(activate_flash_attention_impl\)"
    with pytest.warns(UserWarning, match=f"auto runs attend by flash-attn-3, not flash-attn-4: {reason}"):
        run_kernel("attend", "auto", *tensors, **options)
    assert current_flash_attention_impl() == "FA3"
    with pytest.raises(ValueError, match=f"kernel = flash-attn-4 cannot run attend: {reason}"):
        run_kernel("attend", "flash-attn-4", *tensors, **options)


def test_flash_attention_4_alone_is_no_flash_attention_2(install):
    """Both are installed into the folder flash_attn."""
    install("flash-attn-4", "flash_attn.cute.interface:flash_attn_func", version="4.0.0b36")
    assert FLASH_ATTENTION_4.version() == "4.0.0b36"
    assert FLASH_ATTENTION.version() is None
