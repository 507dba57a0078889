"""The packages that kernels come in: found without importing them, imported at first use, and how to install them here."""

import importlib.util
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch.torch_version import TorchVersion

BUILD_NEEDS = ("ninja", "packaging", "psutil", "setuptools>=77", "wheel")
"""What building from source needs beside torch: without isolation pip fetches none of it. Of setuptools: this project's."""


@dataclass(frozen=True)
class Package:
    """What may be installed: `name` is the kernel's in configurations, `module` what is imported.

    `distributions` are what it may be installed as; of its versions those from `floor` on are used, up to `below` where that is
    set. With `is_compiled` pip builds it from source, against the torch that is there and by the nvcc of that torch's CUDA;
    `source` is where from, if not PyPI.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    floor: str
    below: str | None = None
    is_compiled: bool = False
    source: str | None = None

    @property
    def requirement(self) -> str:
        """The distribution and the versions that are used, as pip writes them."""
        return f"{self.distributions[0]}>={self.floor}" + (f",<{self.below}" if self.below else "")

    def version(self) -> str | None:
        """The installed version; None if there is none. Imports nothing."""
        if importlib.util.find_spec(self.module) is None:
            return None
        for distribution in self.distributions:
            with suppress(PackageNotFoundError):
                return version(distribution)
        return None  # a part of another package: flash-attn 2 and 4 are both in the folder flash_attn

    def install(self) -> tuple[str, ...]:
        """The commands that install it beside this torch."""
        cuda = torch.version.cuda
        commands = []
        if cuda is None:
            plain = torch.__version__.partition("+")[0]
            commands.append(f"pip install --force-reinstall --index-url https://pypi.org/simple torch=={plain}")
        if self.is_compiled:
            commands.append(f"pip install {' '.join(shlex.quote(need) for need in BUILD_NEEDS)}")
            # Which CUDA a CPU build of torch gives way to is known only when that has happened.
            home = cuda or '$(python -c "import torch; print(torch.version.cuda)")'
            commands.append(
                f'CUDA_HOME=/usr/local/cuda-{home} pip install --no-build-isolation "{self.source or self.requirement}"'
            )
        else:
            commands.append(f'pip install "{self.requirement}"')
        return tuple(commands)

    def lack(self) -> str | None:
        """That no version of it is installed that is used; None if one is."""
        installed = self.version()
        if installed is None:
            return f"{self.distributions[0]} is not installed"
        if is_within(installed, self.floor, self.below):
            return None
        return f"{self.distributions[0]} {installed} is installed, {self.requirement} is needed"

    def missing(self) -> str | None:
        """What `lack` says and how to install it; None if there is nothing to install."""
        lack = self.lack()
        return None if lack is None else f"{lack}; to install it: {' && '.join(self.install())}"


def is_within(installed: str, floor: str, below: str | None) -> bool:
    """Whether a version is at least `floor` and under `below`, as PEP 440 orders them: a post-release comes after its release."""
    found = TorchVersion(installed)
    return found >= floor and (below is None or found < below)


FLASH_ATTENTION_4 = Package("flash-attn-4", "flash_attn", ("flash-attn-4",), "4.0.0b36")
FLASH_ATTENTION_3 = Package(
    "flash-attn-3",
    "flash_attn_interface",
    ("flash-attn-3",),
    "3.0.0b1",
    is_compiled=True,
    source="git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper",
)
FLASH_ATTENTION = Package("flash-attn", "flash_attn", ("flash-attn",), "2.8.3", is_compiled=True)
# From 2.3.2 on it pins tilelang 0.1.8, by which flash-linear-attention then computes, and which flash-attn 4 cannot be beside.
MAMBA_SSM = Package("mamba-ssm", "mamba_ssm", ("mamba-ssm",), "2.3", below="2.3.2", is_compiled=True)
CAUSAL_CONV1D = Package("causal-conv1d", "causal_conv1d", ("causal-conv1d",), "1.6", is_compiled=True)
# Before 0.6, gradients of the delta rules are wrong on Hopper (its issues 640 and 984).
FLA = Package("fla", "fla", ("flash-linear-attention", "fla-core"), "0.6")
FLEX = Package("flex", "triton", ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows"), "3.2")
"""Torch's own FlexAttention: what it needs, and builds for CUDA bring along, is the compiler."""


@cache
def load_package(package: Package, function: str) -> Callable[..., Any] | str:
    """The function `module:name` of a package, or in words why there is none; tried once a process.

    A package of kernels may be installed and still fail to import in ways of its own: without a driver, or after torch changed.
    """
    if missing := package.missing():
        return missing
    module, _, name = function.partition(":")
    try:
        with catch_warnings():
            simplefilter("default")  # what a package warns of is no failure of it, even where warnings are errors
            found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is reported
        first_line = str(error).partition("\n")[0]
        return f"{package.distributions[0]} {package.version()} cannot be imported: {type(error).__name__}: {first_line}"
    return found
