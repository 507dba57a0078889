"""The command `kernels`: what it says where nothing is installed, where something is, and where there is a GPU."""

import argparse
import re

import pytest
import torch

from configs import ConfigError
from models import MIXERS
from models.ops.kernels.kernel import HOPPER, unsuited
from models.ops.kernels.package import FLA, FLASH_ATTENTION, FLASH_ATTENTION_3, FLEX, MAMBA_SSM, Package, load_package
from models.ops.kernels.table import OPS
from search.cli import kernels
from search.cli.kernels import mixers_of, run_kernels


@pytest.fixture(autouse=True)
def forgotten():
    def forget():
        load_package.cache_clear()
        unsuited.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def told(capsys):
    """Runs the command: its table as rows of cells, joined over the lines they are broken into, and the lines after it."""

    def run(overrides=()):
        assert run_kernels(argparse.Namespace(), overrides, None) == 0
        rows, lines, is_after = [], [], False
        for line in capsys.readouterr().out.splitlines():
            cells = [cell.strip() for cell in line.split("│")[1:-1]]
            if is_after:
                lines.append(line)
            elif cells and cells[2]:
                rows.append(cells)
            elif cells:
                rows[-1] = [f"{one} {other}".strip() for one, other in zip(rows[-1], cells, strict=True)]
            is_after = is_after or line.startswith("└")
        return rows, lines

    return run


def pretend(monkeypatch, states):
    """Packages are there at their lowest versions, importable unless a reason is given instead."""
    monkeypatch.setattr(Package, "version", lambda package: package.floor if package in states else None)
    monkeypatch.setattr(kernels, "load_package", lambda package, _: states.get(package, "missing"))


def on_a_gpu(monkeypatch, capability=HOPPER):
    monkeypatch.setattr(kernels, "compute_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_every_op_and_kernel_has_its_row(told):
    rows, _ = told()
    ops = [row[0] for row in rows if row[0]]
    assert ops == list(OPS)
    assert [row[2] for row in rows] == [kernel.name for op in OPS.values() for kernel in op.kernels]


def test_without_packages_all_is_missing_and_how_to_install_it(told, monkeypatch):
    pretend(monkeypatch, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows, lines = told()
    assert {row[3] for row in rows} == {"missing"}
    assert {row[5] for row in rows if row[0]} == {"reference"}
    assert any("no CUDA device here" in line for line in lines)
    for op in OPS.values():
        for kernel in op.kernels:
            assert {f"  {command}" for command in kernel.package.install()} <= set(lines)
    commands = [line for line in lines if line.startswith("  ")]
    assert len(commands) == len(set(commands))


def test_on_a_gpu_auto_takes_what_can_be_imported(told, monkeypatch):
    reason = "flash-attn 2.8.3 cannot be imported: ImportError: libcudart.so.13"
    pretend(monkeypatch, {FLA: len, FLASH_ATTENTION: reason})
    on_a_gpu(monkeypatch)
    rows, lines = told()
    by_op = {row[0]: row for row in rows if row[0]}
    assert by_op["gated_delta_rule"][3:] == ["0.6", "heads from 16 to 256", "fla where it fits, else reference"]
    assert next(row[3] for row in rows if row[2] == "flash-attn") == "2.8.3, not used"
    assert by_op["attend"][5] == "reference"
    assert by_op["selective_scan"][5] == "reference"
    assert lines.count(f"flash-attn is not used for attend: {reason}") == 1
    assert any(re.match(r"In float32 auto leaves out .*fla", line) for line in lines)
    assert any("CUDA_HOME=/usr/local/cuda-13.0 pip install --no-build-isolation" in line for line in lines)
    assert not any("flash-linear-attention>=" in line or "flash-attn>=" in line for line in lines)


def test_with_everything_there_is_nothing_to_install(told, monkeypatch):
    pretend(monkeypatch, {kernel.package: len for op in OPS.values() for kernel in op.kernels})
    on_a_gpu(monkeypatch)
    rows, lines = told()
    assert rows[0][5] == "flash-attn-4 or flash-attn-3 or flash-attn or flex where it fits, else reference"
    assert not any("install" in line for line in lines)


@pytest.mark.parametrize(("version", "is_used"), [("2.2.6.post3", False), ("2.3.1", True), ("2.3.2.post1", False)])
def test_versions_that_are_not_used_say_why(told, monkeypatch, version, is_used):
    pretend(monkeypatch, {MAMBA_SSM: len})
    on_a_gpu(monkeypatch)
    monkeypatch.setattr(Package, "version", lambda package: version if package is MAMBA_SSM else None)
    rows, lines = told()
    scan = next(row for row in rows if row[0] == "selective_scan")
    if is_used:
        assert (scan[3], scan[5]) == (version, "mamba-ssm where it fits, else reference")
    else:
        assert (scan[3], scan[5]) == (f"{version}, not used", "reference")
        reason = f"mamba-ssm {version} is installed, mamba-ssm>=2.3,<2.3.2 is needed"
        assert lines.count(f"mamba-ssm is not used for selective_scan, state_space_duality: {reason}") == 1
    assert any(line.endswith('"mamba-ssm>=2.3,<2.3.2"') for line in lines) != is_used


@pytest.mark.parametrize(("triton", "capability", "is_used"), [("3.6.0", 9, False), ("3.6.0", 8, True), ("3.7.1", 9, True)])
def test_what_this_gpu_cannot_run_is_said(told, monkeypatch, triton, capability, is_used):
    pretend(monkeypatch, {FLA: len, FLASH_ATTENTION_3: len, FLEX: len})
    on_a_gpu(monkeypatch, capability)
    versions = {FLA: "0.6.0", FLASH_ATTENTION_3: "3.0.0", FLEX: triton}
    monkeypatch.setattr(Package, "version", lambda package: versions.get(package))  # noqa: PLW0108 - as a method
    rows, lines = told()
    picks = {row[0]: row[5] for row in rows if row[0]}
    assert ("fla" in picks["gated_delta_rule"], "fla" in picks["delta_rule"]) == (is_used, True)
    reason = f"fla is not used for gated_delta_rule: Triton {triton} compiles it to wrong gradients on this GPU"
    assert any(line.startswith(reason) for line in lines) != is_used
    reason = "flash-attn-3 is not used for attend: it is for GPUs of compute capability 9, not 8"
    assert ("flash-attn-3" in picks["attend"], reason in lines) == (capability == 9, capability == 8)


def test_mixers_are_named_beside_their_ops():
    assert "gated_delta_net" in mixers_of("gated_delta_rule")
    assert {"mamba", "attention"} <= set(mixers_of("causal_convolution"))
    assert "hyena" not in mixers_of("linear_attention")
    named = {kind for op in OPS if op != "causal_convolution" for kind in mixers_of(op)}
    assert named == {kind for kind in MIXERS if hasattr(MIXERS[kind], "kernel_op")}


def test_settings_are_refused(told):
    with pytest.raises(ConfigError, match="kernels: takes no settings, got a=1"):
        told(overrides=["a=1"])
