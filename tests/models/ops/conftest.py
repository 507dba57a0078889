"""Stand-ins for the packages of kernels, installed for a test, and a processor that counts as a GPU."""

import sys
from importlib.metadata import PackageNotFoundError, distributions
from types import SimpleNamespace

import pytest

from models.ops.kernels import dispatch, kernel, package
from models.ops.kernels.kernel import HOPPER
from models.ops.kernels.package import load_package
from models.ops.kernels.table import OPS

ROOTS = {"flash_attn", "flash_attn_interface", "mamba_ssm", "causal_conv1d", "fla"}


@pytest.fixture(autouse=True)
def forgotten():
    """What was tried to import is tried anew, before and after; real packages come back, stand-ins do not stay."""

    def forget():
        for known in (load_package, kernel.unsuited, dispatch.tell):
            known.cache_clear()
        names = [name for name in sys.modules if name.partition(".")[0] in ROOTS]
        return {name: sys.modules.pop(name) for name in names}

    real = forget()
    yield
    forget()
    sys.modules.update(real)


@pytest.fixture
def only_stand_ins(tmp_path, monkeypatch):
    """What this machine really has is not seen."""

    def version(name):
        for found in distributions(name=name, path=[str(tmp_path)]):
            return found.version
        raise PackageNotFoundError(name)

    monkeypatch.setattr(package, "version", version)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a function importable as `module:name` of a distribution, by the text of its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def installed(distribution, function, text=None, version="9.9"):
        module, _, name = function.partition(":")
        folder = tmp_path
        for part in module.split("."):
            folder /= part
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / "__init__.py").write_text(text or f"from tests.models.foreign import {name}\n")
        for old in tmp_path.glob(f"{distribution.replace('-', '_')}-*.dist-info/METADATA"):
            old.unlink()
            old.parent.rmdir()
        metadata = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")

    return installed


@pytest.fixture
def as_on_cuda(monkeypatch):
    """What lies on the CPU counts as on a Hopper GPU, and torch's flash attention can be switched over to what does nothing."""
    from torch.nn.attention import _registry, restore_flash_attention_impl  # where torch has them

    monkeypatch.setattr(dispatch, "is_on_cuda", lambda tensor: tensor.device.type == "cpu")
    monkeypatch.setattr(dispatch, "compute_capability", lambda _: HOPPER)
    for name in ("FA3", "FA4"):
        monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, name, lambda: SimpleNamespace(remove=lambda: None))
    yield
    restore_flash_attention_impl(_raise_warn=False)


@pytest.fixture
def stand_ins(install, as_on_cuda):  # noqa: ARG001 - marks do nothing for fixtures
    """Every package is installed, at the lowest version that is used."""
    for op in OPS.values():
        for each in op.kernels:
            if each.name != "flex":
                install(each.package.distributions[0], each.function, version=each.package.floor)
